"""Rules, pre-rules, attacks and peer-side rules by name; errors are `RuleError`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from aggregators.core.options import RuleError, integral
from methods import kinds, options, registry, spelling
from methods.kinds import ATTACKS, PEER_RULES, PRE_RULES, RULES
from methods.registry import MethodError, loadable, names

KINDS = {group: kinds.word(group) for group in (RULES, PRE_RULES, ATTACKS, PEER_RULES)}
_GROUP = RULES  # all kinds here are given `faults`, or have no such field

T = TypeVar("T")


def find(group: str, name: str, base: type[T]) -> type[T]:
    """The class called `name`; the `RuleError` if there is none names the nearest, or the kind that it is of."""
    with _as_rule_errors():
        return cast(type[T], registry.find(group, name, base))


def option_names(plugin: type[object]) -> tuple[str, ...]:
    """What may be set, in the order of the class."""
    return tuple(option.name for option in options.options_of(plugin, _GROUP))


def positional(plugin: type[object], name: str, argument: str) -> dict[str, Any]:
    """The options that stand behind a colon, see `methods.spelling`. Raises `RuleError`."""
    with _as_rule_errors():
        return spelling.read_positional(plugin, name, argument, _GROUP)


def construct(plugin: type[T], name: str, values: Mapping[str, Any], **given: Any) -> T:
    """Makes the plug-in; `RuleError` if an option is unknown, missing or of a value that it refuses."""
    # numpy's integers are as good as Python's own, and from here on they are Python's.
    numbers = {option: number for option, value in values.items() if (number := integral(value)) is not None}
    with _as_rule_errors():
        return cast(T, options.make(plugin, name, {**values, **numbers}, _GROUP, given))


def hint(name: str, known: Sequence[str]) -> str:
    """What to say behind an unknown name: the nearest, or all that there are."""
    return registry.hint(name, known)


@contextmanager
def _as_rule_errors() -> Generator[None]:
    try:
        yield
    except RuleError:
        raise
    except MethodError as error:
        raise RuleError(str(error)) from error


__all__ = [
    "ATTACKS",
    "KINDS",
    "PEER_RULES",
    "PRE_RULES",
    "RULES",
    "construct",
    "find",
    "hint",
    "loadable",
    "names",
    "option_names",
    "positional",
]
