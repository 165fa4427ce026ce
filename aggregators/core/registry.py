"""Finds plug-ins by their entry points and makes them of their options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from aggregators.core.options import RuleError, integral

RULES = "muster.rules"
PRE_RULES = "muster.pre_rules"
ATTACKS = "muster.attacks"
PEER_RULES = "muster.peer_rules"

KINDS = {
    RULES: "aggregation rule",
    PRE_RULES: "pre-rule",
    PEER_RULES: "peer-side rule",
    ATTACKS: "attack",
}

T = TypeVar("T")


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def names(group: str) -> tuple[str, ...]:
    """The names that are installed in `group`, sorted."""
    return tuple(sorted(_installed(group)))


def find(group: str, name: str, base: type[T]) -> type[T]:
    """The class called `name`; the `RuleError` if there is none names the nearest, or the kind that it is of."""
    point = _installed(group).get(name)
    kind = KINDS[group]
    if point is None:
        for other, other_kind in KINDS.items():
            if other != group and name in _installed(other):
                raise RuleError(f"{name!r} is a kind of {other_kind}, and a kind of {kind} was asked for")
        raise RuleError(f"there is no {kind} {name!r}{nearest(name, names(group))}")
    loaded = point.load()
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise RuleError(f"{point.value}, installed as {kind} {name!r}, is no {base.__name__}")
    return loaded


def option_names(plugin: type[object]) -> tuple[str, ...]:
    """What may be set, in the order of the class."""
    return tuple(field.name for field in _fields(plugin) if field.name != "faults")


def positional(plugin: type[object], name: str, argument: str) -> dict[str, Any]:
    """The option that stands behind a colon, "bucketing:2": the plug-in's first, a number. Raises `RuleError`."""
    known = option_names(plugin)
    if not known:
        raise RuleError(f"{name} takes no value, and {argument!r} stands behind its colon")
    for kind in (int, float):
        try:
            return {known[0]: kind(argument)}
        except ValueError:
            continue
    raise RuleError(f"{name} takes a number behind its colon, {known[0]}, and not {argument!r}")


def construct(plugin: type[T], name: str, options: Mapping[str, Any], **given: Any) -> T:
    """Makes the plug-in; `RuleError` if an option is unknown, missing or of a value that it refuses."""
    known = option_names(plugin)
    for option in options:
        if option not in known:
            raise RuleError(f"{name} has no option {option!r}{nearest(option, known)}")
    required = {field.name for field in _fields(plugin) if _is_required(field)}
    for option in known:
        if option in required and option not in options:
            raise RuleError(f"{name} needs the option {option!r}")
    # numpy's integers are as good as Python's own, and from here on they are Python's.
    numbers = {option: number for option, value in options.items() if (number := integral(value)) is not None}
    return plugin(**{**options, **numbers}, **given)


def _fields(plugin: type[object]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(plugin) if dataclasses.is_dataclass(plugin) else ()


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def nearest(name: str, known: Sequence[str]) -> str:
    """What to say behind an unknown name: the nearest, or all that there are."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(known)}" if known else "; it has none"
