"""What this machine lets a coordinator run on it.

Code never comes over the wire: a task is a class that is installed here, and it runs only if this machine's
own policy allows it, on the data that the policy names. The policy is a TOML file

    [[allow]]
    task = "examples.digits:Digits"        # exact, or a pattern: "examples.*:*", "*"
    data = { index = 0, count = 4 }        # handed to the task as site.data; it never leaves this machine

or is put together on the command line (`muster join --allow TASK --data key=value`), or both. The first entry
whose task fits counts, those of the command line first. Without any entry nothing is allowed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from muster.errors import ConfigError, NotAllowedError


class AllowEntry(BaseModel):
    """One `[[allow]]` table."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    task: str = Field(pattern=r"^([\w.*?\[\]!-]+:[\w*?\[\]!-]+|\*)$")
    data: dict[str, Any] = Field(default_factory=dict)


class _PolicyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    allow: tuple[AllowEntry, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """`source` is the file to edit, or None if the policy has none."""

    entries: tuple[AllowEntry, ...]
    source: Path | None = None

    def permit(self, task: str) -> Mapping[str, Any]:
        """The data that `task` may work on here. Raises `NotAllowedError` `peer.task_not_allowed`."""
        for entry in self.entries:
            if fnmatchcase(task, entry.task):
                return entry.data
        line = f'[[allow]] task = "{task}"'
        raise NotAllowedError(
            "peer.task_not_allowed",
            f"the policy of this peer does not allow the task {task!r}",
            cause=f"it allows {self._allowed()}",
            fix=f"add {line} to {self.source}, then restart the peer"
            if self.source
            else f"join with --allow {task}, or with a policy file that has {line}",
        )

    def _allowed(self) -> str:
        return ", ".join(repr(entry.task) for entry in self.entries) or "nothing"


def load_policy(
    path: Path | None, *, allow: Sequence[str] = (), data: Mapping[str, Any] | None = None
) -> Policy:
    """The policy of the file (which need not exist: then it allows nothing) and of the command line.

    `data` goes to every entry of `allow`, and over the same keys of the file's entries. Raises `ConfigError`
    `policy.unreadable`, `policy.invalid`; the message of the latter has one line for each mistake.
    """
    extra = dict(data or {})
    given = _validate({"allow": [{"task": task, "data": extra} for task in allow]}, "--allow", "")
    entries = [*given.allow]
    if path is not None and path.exists():
        entries += [entry.model_copy(update={"data": {**entry.data, **extra}}) for entry in _read(path).allow]
    return Policy(entries=tuple(entries), source=path)


def _read(path: Path) -> _PolicyFile:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "policy.unreadable",
            f"the policy file {path} cannot be read: {error}",
            fix="make it a UTF-8 text file that this user may read",
        ) from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise _invalid([f"{path}:{line[1] if line else text.count(chr(10)) + 1}: {error}"]) from error
    return _validate(raw, str(path), text)


def _validate(raw: dict[str, Any], name: str, text: str) -> _PolicyFile:
    try:
        return _PolicyFile.model_validate(raw)
    except ValidationError as error:
        raise _invalid([_line(name, text, row["loc"], row["msg"]) for row in error.errors()]) from error


def _line(name: str, text: str, place: tuple[int | str, ...], what: str) -> str:
    """`FILE:LINE: key: what is wrong`; the line is the key's own if it stands alone, else its table's."""
    where = "allow"
    if len(place) > 1 and isinstance(place[1], int):
        where = f"allow[{place[1] + 1}]"
    last = place[len(place) - 1]
    key = "" if isinstance(last, int) else last
    where = f"{where}.{key}" if len(place) > 2 else key or where
    number = _line_number(text.splitlines(), place, key)
    return f"{name}:{number}: {where}: {what}" if number else f"{name}: {where}: {what}"


def _line_number(lines: list[str], place: tuple[int | str, ...], key: str) -> int | None:
    if not lines:
        return None
    tables = [i for i, line in enumerate(lines) if re.match(r"\s*\[\[\s*allow\s*\]\]", line)]
    index = place[1] if len(place) > 1 and isinstance(place[1], int) else None
    start, stop = 0, len(lines)
    if index is not None and index < len(tables):
        start = tables[index]
        stop = tables[index + 1] if index + 1 < len(tables) else stop
    for i in range(start, stop):
        if re.match(rf"\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]", lines[i]):
            return i + 1
    return start + 1


def _invalid(lines: list[str]) -> ConfigError:
    return ConfigError(
        "policy.invalid",
        "\n".join(lines),
        fix="a policy is a list of [[allow]] tables, each with a task and, if wanted, data",
    )
