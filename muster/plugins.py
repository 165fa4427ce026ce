"""Plug-ins of every kind for the run spec and the services: `methods`, whose errors become `ConfigError`.

Looking a name up imports nothing, so that a run spec is checked without torch; only `find` and `make` load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from methods import options, registry
from methods.kinds import ALIASES, KINDS
from methods.registry import (
    BrokenMethodError,
    MethodError,
    UnknownMethodError,
    canonical,
    names,
    nearest,
    unknown,
)
from muster.errors import ConfigError


class HasOptions(Protocol):
    """A table of a run spec: its keys with their values, and the options of its plug-in."""

    @property
    def options(self) -> Mapping[str, Any]: ...
    def __iter__(self) -> Iterator[tuple[str, Any]]: ...


GROUPS = {group: kind.word for group, kind in KINDS.items()}


def find(group: str, name: str) -> Any:
    """Loads what an entry point names, as a rule a class.

    Raises `ConfigError`: "plugin.unknown" (with the nearest name), "plugin.broken" (it cannot be imported).
    """
    try:
        return registry.find(group, name)
    except UnknownMethodError as error:
        if registry.is_uninstalled() and not names(group):
            raise ConfigError(
                "plugin.unknown",
                str(error),
                cause="Muster's entry points are missing: it runs from a checkout that was never installed",
                fix="pip install -e . in the checkout",
            ) from error
        raise ConfigError(
            "plugin.unknown",
            str(error),
            cause=f"no installed package has an entry point {name!r} in the group {group!r}",
            fix="correct the name, or install the package that provides it",
        ) from error
    except BrokenMethodError as error:
        raise ConfigError(
            "plugin.broken", str(error), fix="reinstall the package that provides it"
        ) from error


def fact(group: str, name: str, attribute: str, default: Any) -> Any:
    """What the class of a plug-in says of itself; the default where it says nothing or is not installed."""
    try:
        return getattr(registry.find(group, name), attribute, default)
    except MethodError:
        return default


def values(group: str, name: str, table: HasOptions) -> dict[str, Any]:
    """The options that a table of a run spec gives to its plug-in: what stands in `options`, and of the table's own
    keys those that the plug-in has an option for. Raises `ConfigError` as `find`."""
    known = {option.name for option in options.options_of(find(group, name), group)}
    own = {key: value for key, value in table if key in known and key != "options"}
    return {**own, **table.options}


def make(group: str, name: str, values: Mapping[str, Any], **given: Any) -> Any:
    """The plug-in `name`, made of its options and of what its kind is given (`methods.kinds.Kind.given`).

    Raises `ConfigError`: as `find`, and "plugin.bad_options" of options that it has not or refuses.
    """
    try:
        return options.make(find(group, name), name, values, group, given)
    except MethodError as error:
        raise ConfigError(
            "plugin.bad_options",
            f"the {GROUPS.get(group, 'plug-in')} {name!r} refuses its options: {error}",
            fix=f"correct them in the run spec; muster plugin show {name} lists what it takes",
        ) from error


__all__ = ["ALIASES", "GROUPS", "canonical", "fact", "find", "make", "names", "nearest", "unknown", "values"]
