"""What is installed, of every kind, as plain data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from methods import options, registry
from methods.kinds import KINDS, word
from methods.options import Option


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A plug-in that is installed; nothing has been imported for it."""

    name: str
    kind: str
    group: str
    package: str  # the distribution that provides it
    place: str  # "module:Class"


@dataclass(frozen=True, kw_only=True)
class Description(Entry):
    """`text` is what the class says of itself, `requires` what its `requires` says that it demands of a run spec, and
    `schema` the JSON Schema of its options."""

    text: str
    requires: str
    options: tuple[Option, ...]
    schema: Mapping[str, Any]


def entries(group: str = "") -> tuple[Entry, ...]:
    """All that are installed, or those of one group, by kind and name. Imports none of them."""
    found = [
        Entry(
            name=name,
            kind=word(each),
            group=each,
            package=point.dist.name if point.dist is not None else "",
            place=point.value,
        )
        for each in ([group] if group else KINDS)
        for name, point in sorted(registry.installed(each).items())
    ]
    return tuple(found)


def describe(name: str, group: str = "") -> tuple[Description, ...]:
    """The plug-ins of this name, one of each kind that has it; or that of one group.

    Raises `UnknownMethodError` with the nearest name if there is none, `BrokenMethodError` if one cannot be loaded.
    """
    found = [entry for entry in entries(group) if entry.name == registry.canonical(entry.group, name)]
    if not found:
        known = sorted({entry.name for entry in entries(group)})
        kind = word(group) if group else "plug-in"
        raise registry.UnknownMethodError(
            f"there is no {kind} {name!r} {registry.hint(name, known, registry.NONE)}"
        )
    return tuple(_described(entry) for entry in found)


def _described(entry: Entry) -> Description:
    plugin = registry.find(entry.group, entry.name)
    module = inspect.getmodule(plugin)
    return Description(
        **vars(entry),
        text=options.docstring(plugin) or inspect.cleandoc((module.__doc__ if module else None) or ""),
        requires=inspect.cleandoc(getattr(plugin.__dict__.get("requires"), "__doc__", None) or ""),
        options=options.options_of(plugin, entry.group),
        schema=options.schema(plugin, entry.group),
    )
