"""Reads a run spec from TOML. All mistakes are told at once, each with its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from muster.errors import ConfigError
from muster.spec.lines import KeyPath, key_lines
from muster.spec.model import RunSpec
from muster.spec.problems import Problem, check, dotted, invalid
from muster.spec.relations import contradictions, unknown_names

TEXT_BYTES_MAX = 1 << 20  # a spec is a page; what is larger is another file
STAND_INS = {"task": "a:B", "rounds": 1}  # for required keys that are missing, while the rest is looked at

_TOML_PLACE = re.compile(r" \(at line (\d+), column \d+\)$| \(at end of document\)$")


def load_spec(path: Path | str, *, load_methods: bool = True) -> tuple[RunSpec, str]:
    """The spec in a file, and its text as it stands there; `load_methods` as in `parse_spec`.

    Raises `ConfigError`: "spec.not_found", "spec.unreadable", "spec.invalid".
    """
    text = read_toml(Path(path), "spec", "run spec")
    return parse_spec(text, str(path), load_methods=load_methods), text


def parse_spec(text: str, filename: str, *, load_methods: bool = True) -> RunSpec:
    """The spec in a text. Whether its methods go together a coordinator tells, `coordinator.submission.checks`.

    Plug-ins are loaded, and torch with them, where the spec gives one options or chooses a rule and says no f;
    `load_methods` False leaves that to the coordinator, which is handed the text too.
    Raises `ConfigError` "spec.invalid", with a line "FILE:LINE: key: what is wrong" for each mistake; "plugin.broken".
    """
    data = parse_toml(text, filename, "spec.invalid")
    checked = check(RunSpec, data, STAND_INS)
    problems = [*checked.problems, *unknown_names(data)]
    if checked.mended is not None:
        problems += contradictions(checked.mended, lambda path: not checked.doubts(path))
        told = _of_methods(checked.mended, data) if load_methods else ()
        problems += [problem for problem in told if not checked.doubts(problem.path)]
    if problems or checked.mended is None:
        raise invalid_spec(problems, text, filename)
    return checked.mended


def _of_methods(spec: RunSpec, data: Mapping[str, Any]) -> Iterator[Problem]:
    from muster.spec.options import missing_faults, wrong_options

    yield from wrong_options(spec, given_only=True)
    yield from missing_faults(spec, data)


def invalid_spec(problems: Sequence[Problem], text: str, filename: str) -> ConfigError:
    """All mistakes of a run spec in the order of their lines; without its text only with their keys."""
    lines = key_lines(text) if text else {}
    placed = sorted(
        ((line_of(problem.path, lines), problem) for problem in problems), key=lambda pair: pair[0]
    )
    return invalid(
        "spec.invalid",
        filename,
        [f"{f'{filename}:{line}: ' if text else ''}{format_problem(problem)}" for line, problem in placed],
    )


def spec_schema() -> dict[str, Any]:
    """JSON Schema of the run spec, for editors; with the options of the plug-ins that are installed here, which are
    loaded for it."""
    from muster.spec.options import with_option_schemas

    return with_option_schemas(RunSpec.model_json_schema())


def read_toml(path: Path, area: str, kind: str) -> str:
    """The text of a TOML file. Raises `ConfigError` "{area}.not_found" or "{area}.unreadable"."""
    try:
        with path.open("rb") as file:
            body = file.read(TEXT_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{area}.not_found", f"there is no {kind} {path}", fix="check the path") from error
    except OSError as error:
        raise ConfigError(
            f"{area}.unreadable", f"the {kind} {path} cannot be read", cause=error.strerror or str(error)
        ) from error
    if len(body) > TEXT_BYTES_MAX:
        raise ConfigError(
            f"{area}.unreadable",
            f"the {kind} {path} is larger than {TEXT_BYTES_MAX} bytes",
            cause="it is probably another file",
        )
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{area}.unreadable",
            f"{path}:{line}: not UTF-8 text",
            cause="TOML is always UTF-8",
            fix="save it as UTF-8",
        ) from error


def parse_toml(text: str, filename: str, id: str) -> dict[str, Any]:
    """`tomllib.loads`, whose error becomes a `ConfigError` with file and line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said = str(error)
        place = _TOML_PLACE.search(said)
        line = int(place[1]) if place and place[1] else text.count("\n", 0, len(text.rstrip())) + 1
        reason = said[: place.start()] if place else said
        raise invalid(
            id, filename, [f"{filename}:{line}: not TOML: {reason[:1].lower()}{reason[1:]}"]
        ) from error


def line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    """The line of a key, or of the nearest table above it that is written; 1 for the file."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def format_problem(problem: Problem) -> str:
    """One line: the key and what is wrong with it."""
    return f"{dotted(problem.path)}: {problem.message}" if problem.path else problem.message
