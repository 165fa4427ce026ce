"""Finds plug-ins by name through entry points. Looking a name up imports nothing; only `find` loads."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from methods.kinds import ALIASES, KINDS, RULES, word

NONE = "none is installed"


class MethodError(ValueError):
    """A plug-in cannot be had, or not with these options; the message is one sentence for a person."""


class UnknownMethodError(MethodError):
    """No installed package provides a plug-in of this name and kind."""


class BrokenMethodError(MethodError):
    """The entry point names something that cannot be imported, or that is no plug-in of its kind."""


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name. Read once a process; `installed.cache_clear()` reads them again."""
    return {point.name: point for point in entry_points(group=group)}


def names(group: str) -> tuple[str, ...]:
    """The names in a group, sorted; empty if nothing of the kind is installed."""
    return tuple(sorted(installed(group)))


def is_uninstalled() -> bool:
    """Whether even what Muster brings itself is missing: a checkout that was never installed. Rules tell it, as of
    other kinds there may rightly be none."""
    return not installed(RULES)


def canonical(group: str, name: str) -> str:
    """The name under which a plug-in is installed, of one that goes by others elsewhere: "FedAvg" is mean."""
    if name in installed(group):
        return name
    return ALIASES.get(group, {}).get(name.lower().replace("_", "-"), name)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known word that `name` was probably meant to be, if any is near."""
    found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return found[0] if found else None


def hint(name: str, known: Sequence[str], none: str = "it has none") -> str:
    """What to say after an unknown name: the nearest known one, or all of them, or `none`.

    >>> hint("medain", ("mean", "median"))
    "(did you mean 'median'?)"
    >>> hint("zzz", ("mean", "median"))
    '(known: mean, median)'
    """
    guess = nearest(name, known)
    if guess:
        return f"(did you mean {guess!r}?)"
    return f"(known: {', '.join(known)})" if known else f"({none})"


def unknown(group: str, name: str) -> str | None:
    """One sentence if `name` is not in the group; None if it is, or where nothing at all is installed."""
    known = names(group)
    if canonical(group, name) in known or (not known and is_uninstalled()):
        return None
    if not name.strip():
        listed = hint("", known, NONE)
        return f"the name of a plug-in of the kind {word(group)} is missing {listed}"
    for other, kind in KINDS.items():
        if other != group and group in KINDS and name in installed(other):
            return f"{name!r} is a kind of {kind.word}, and a kind of {word(group)} was asked for"
    return f"there is no {word(group)} {name!r} {hint(name, known, NONE)}"


def find(group: str, name: str, base: type[Any] = object) -> type[Any]:
    """The class that the entry point `name` of `group` names, a subclass of `base`.

    Raises `UnknownMethodError` (with the nearest name) and `BrokenMethodError`.
    """
    point = installed(group).get(canonical(group, name))
    if point is None:
        said = unknown(group, name)
        raise UnknownMethodError(
            said or f"nothing is registered in {group!r}, so {name!r} cannot be looked up"
        )
    try:
        loaded = point.load()
    except Exception as error:  # whatever a package of somebody else's raises while it is imported
        raise BrokenMethodError(
            f"the {word(group)} {name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise BrokenMethodError(f"{point.value}, installed as {word(group)} {name!r}, is no {base.__name__}")
    return loaded


def loadable(group: str, base: type[Any] = object) -> tuple[str, ...]:
    """The names in a group, sorted, without those that cannot be loaded. Loads them all."""
    trouble = broken(group, base)
    return tuple(name for name in names(group) if name not in trouble)


def broken(group: str, base: type[Any] = object) -> Mapping[str, str]:
    """Of the names in a group those that cannot be loaded, each with a sentence that tells why. Loads them all."""
    found: dict[str, str] = {}
    for name in names(group):
        try:
            find(group, name, base)
        except BrokenMethodError as error:
            found[name] = str(error)
    return found
