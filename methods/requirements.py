"""What a plug-in demands of the rest of a run spec, said by the plug-in itself.

A plug-in of any kind may have a method `requires`:

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        if spec["compression"]["feedback"] != "none":
            yield Requirement(
                "my-codec loses nothing that a feedback could keep: compression.feedback none",
                {"compression.feedback": "none"},
            )

It is called on a plug-in that has been made of its options, when a run is submitted and when a run spec is validated.
It yields every demand that the spec does not meet, the most important one first, and nothing where all are met. A run
whose spec does not meet one is refused with the sentence; what to set instead is tried out before it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

SpecValues: TypeAlias = Mapping[str, Any]
"""The run spec as plain values, defaults filled in: spec["train"]["steps"], spec["rounds"]. Spellings are canonical, so
that `spec["compression"]["up"]` of "topk:0.010" is "topk:0.01"."""


@dataclass(frozen=True)
class Requirement:
    """One demand that a spec does not meet.

    `sentence` says what does not go together and what would. `change` are values with which this demand is met, by
    dotted key: {"train.steps": 1}; None leaves the key out. `key` is the key that is wrong, where it is one alone: its
    line is told, and the sentence need not name it.
    """

    sentence: str
    change: Mapping[str, Any] = field(default_factory=dict[str, Any])
    key: str = ""


@runtime_checkable
class Requires(Protocol):
    def requires(self, spec: SpecValues) -> Iterable[Requirement]:
        """The demands of this plug-in that the spec does not meet."""
        ...


def requirements(plugin: object, spec: SpecValues) -> Iterator[Requirement]:
    """What the plug-in requires and the spec does not have; nothing of one that says nothing."""
    if isinstance(plugin, Requires):
        yield from plugin.requires(spec)


def value_at(spec: SpecValues, key: str) -> Any:
    """What stands at a dotted key: "train.steps"."""
    value: Any = spec
    for part in key.split("."):
        value = value[part]
    return value


def demand(spec: SpecValues, sentence: str, wanted: Mapping[str, Any]) -> Iterator[Requirement]:
    """One requirement, whose change are those of the `wanted` values that the spec does not have; none if it has all.

    >>> list(demand({"round": {"quorum": 0.8}}, "all must come: round.quorum 1", {"round.quorum": 1}))
    [Requirement(sentence='all must come: round.quorum 1', change={'round.quorum': 1}, key='')]
    """
    change = {key: value for key, value in wanted.items() if value_at(spec, key) != value}
    if change:
        yield Requirement(sentence, change)
