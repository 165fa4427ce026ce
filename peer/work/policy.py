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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field

from muster.errors import ConfigError, NotAllowedError
from muster.spec.lines import KeyPath, key_lines
from muster.spec.load import format_problem, line_of, parse_toml, read_toml
from muster.spec.model import TASK_PATTERN, Table
from muster.spec.problems import check


class AllowEntry(Table):
    """One `[[allow]]` table."""

    task: str = Field(
        pattern=TASK_PATTERN,
        description="a task 'package.module:Class' or a pattern of them",
    )
    data: dict[str, Any] = Field(default_factory=dict, description="handed to the task as site.data")


class _PolicyFile(Table):
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
    named = {"allow": [{"task": task, "data": extra} for task in allow]}
    entries = [*_validate(named, lambda path: f"--allow {allow[_index(path)]}").allow]
    if path is not None and path.exists():
        text = read_toml(path, "policy", "policy file")
        raw = parse_toml(text, str(path), "policy.invalid")
        lines = key_lines(text)
        found = _validate(raw, lambda key: f"{path}:{line_of(key, lines)}")
        entries += [entry.model_copy(update={"data": {**entry.data, **extra}}) for entry in found.allow]
    return Policy(entries=tuple(entries), source=path)


def _validate(data: Mapping[str, Any], place: Callable[[KeyPath], str]) -> _PolicyFile:
    checked = check(_PolicyFile, data)
    if checked.problems or checked.mended is None:
        raise ConfigError(
            "policy.invalid",
            "\n".join(f"{place(problem.path)}: {format_problem(problem)}" for problem in checked.problems),
            fix="a policy is a list of [[allow]] tables, each with a task and, if wanted, data",
        )
    return checked.mended


def _index(path: KeyPath) -> int:
    return next((part for part in path if isinstance(part, int)), 0)
