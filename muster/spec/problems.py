"""Every mistake of a configuration at once, in words, each with its key: for run specs and node configs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from muster.errors import ConfigError
from muster.plugins import nearest
from muster.spec.lines import KeyPath

ModelT = TypeVar("ModelT", bound=BaseModel)

PASSES_MAX = 4  # keys that are wrong alone, then tables whose keys contradict each other, then what is left
SHOWN_MAX = 60  # characters of a wrong value that are shown


@dataclass(frozen=True)
class Problem:
    """A key of a document, and what is wrong with it."""

    path: KeyPath  # () is the whole file
    message: str


@dataclass(frozen=True)
class Checked(Generic[ModelT]):
    """`mended` is the model without the keys named in `problems`, for checks that look at several tables;
    None if nothing can be built. With no problems it is the model."""

    problems: tuple[Problem, ...]
    mended: ModelT | None

    def doubts(self, path: KeyPath) -> bool:
        """True if `mended` may not hold at `path` what was written there."""
        return any(path[: len(p.path)] == p.path or p.path[: len(path)] == path for p in self.problems)


def check(
    model: type[ModelT], data: Mapping[str, Any], stand_ins: Mapping[str, Any] | None = None
) -> Checked[ModelT]:
    """Validates strictly (no "20" for 20, no true for 1.0).

    A table's own rules are looked at only once its keys are right, so wrong keys are taken out and the rest
    is looked at again; `stand_ins` fill required keys meanwhile.
    """
    problems = list(_not_finite(data, ()))
    rest: dict[str, Any] = json.loads(
        json.dumps(_without(data, [p.path for p in problems]), default=_as_text)
    )
    for _ in range(PASSES_MAX):
        try:
            return Checked(tuple(problems), model.model_validate_json(json.dumps(rest), strict=True))
        except ValidationError as error:
            # A default made of another key cannot be made while that one is wrong: it is told once, there.
            found = [d for d in error.errors(include_url=False) if d["type"] != "default_factory_not_called"]
        missing = [d["loc"] for d in found if d["type"] == "missing"]
        # What is missing because it was taken out for being wrong was told already.
        told = {problem.path for problem in problems}
        problems += [Problem(d["loc"], _words(model, d)) for d in found if d["loc"] not in told]
        # Nothing stands in for a key that a table requires: the table goes.
        rest = _without(rest, [d["loc"][:-1] if d["loc"] in missing else d["loc"] for d in found])
        absent = [str(loc[0]) for loc in missing if len(loc) == 1]
        rest.update({key: stand_ins[key] for key in absent if stand_ins and key in stand_ins})
        if any(not details["loc"] for details in found):
            break
    return Checked(tuple(problems), None)


def invalid(id: str, name: str, lines: Sequence[str]) -> ConfigError:
    """One error for all mistakes in what is called `name`; `lines` are "place: key: what is wrong"."""
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return ConfigError(
        id,
        "\n".join([f"{name} has {count}", *lines]),
        fix="muster config schema   lists every key, what it means and what it may be",
        problems=len(lines),
    )


def dotted(path: KeyPath) -> str:
    """`train.lr`, `pre[0]`: as a person would write it."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model of the table at `path`, or None where keys are free."""
    for part in path:
        if isinstance(part, int):
            continue  # an element of an array of tables
        field = model.model_fields.get(part)
        if field is None:
            return None
        candidates = [field.annotation, *get_args(field.annotation)]
        tables = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not tables:
            return None
        model = tables[0]
    return model


def _words(model: type[BaseModel], details: ErrorDetails) -> str:
    path, kind = details["loc"], details["type"]
    table = model_at(model, path[:-1]) if path else None
    field = table.model_fields.get(str(path[-1])) if table is not None else None
    if kind == "extra_forbidden":
        return _unknown_key(model, path)
    if kind == "missing":
        return "is missing" + (f": {field.description}" if field and field.description else "")
    if kind == "value_error":
        return details["msg"].removeprefix("Value error, ")
    shown = _shown(details["input"])
    if kind == "string_pattern_mismatch" and field and field.description:
        return f"should be {field.description}, but is {shown}"
    if kind == "model_type":
        return f"should be a table, but is {shown}"
    hint = ""
    if kind == "literal_error":
        expected = str(details.get("ctx", {}).get("expected", ""))
        known = tuple(part.strip("'") for part in expected.replace(" or ", ", ").split(", "))
        guess = nearest(str(details["input"]), known)
        hint = f" (did you mean {guess!r}?)" if guess else ""
    said = details["msg"].removeprefix("Input ")
    return f"{said[:1].lower()}{said[1:]}, but is {shown}{hint}"


def _unknown_key(model: type[BaseModel], path: tuple[int | str, ...]) -> str:
    table = model_at(model, path[:-1])
    known = tuple(sorted(table.model_fields)) if table else ()
    key = str(path[-1])
    guess = nearest(key, known)
    elsewhere = [dotted(found) for found in _paths(model) if found[-1] == key]
    if guess is None and len(elsewhere) == 1:
        guess = elsewhere[0]
    return (
        f"unknown key (did you mean {guess!r}?)" if guess else f"unknown key (known here: {', '.join(known)})"
    )


def _paths(model: type[BaseModel], above: KeyPath = ()) -> Iterator[KeyPath]:
    for name in model.model_fields:
        yield (*above, name)
        inner = model_at(model, (name,))
        if inner is not None:
            yield from _paths(inner, (*above, name))


def _not_finite(value: Any, path: KeyPath) -> Iterator[Problem]:
    if isinstance(value, float) and not math.isfinite(value):
        yield Problem(path, f"must be a finite number, but is {value}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, (*path, index))


def _without(data: Mapping[str, Any], paths: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy without the keys at `paths`; of an array with a wrong element, the whole."""
    here = {path[0] for path in paths if len(path) == 1 or (len(path) > 1 and isinstance(path[1], int))}
    copy: dict[str, Any] = {}
    for key, value in data.items():
        if key in here:
            continue
        inner = [path[1:] for path in paths if len(path) > 1 and path[0] == key]
        copy[key] = _without(value, inner) if inner and isinstance(value, Mapping) else value
    return copy


def _as_text(value: Any) -> str:
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a configuration")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "..."
