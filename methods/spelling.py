"""How plug-ins are spelled where one string names them and carries their options.

    NAME                        "int8"
    NAME:VALUE                  "topk:0.01", "bucketing:2": VALUE is read by the plug-in, as a rule its first option
    NAME:OPTION=VALUE:...       "topk:fraction=0.01": every option by its name; of a boolean the name alone will do
    A+B+C                       codecs one after the other, and codings: "topk:0.01+int8+rice+zstd"
    A|B                         codecs of which each layer takes one: "int8|int4"

No plug-in's name is known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from methods.options import options_of
from methods.registry import MethodError, hint

CHOICE, CHAIN = "|", "+"
CODINGS = frozenset(
    {"auto", "rice", "varint", "zstd"}
)  # in a chain, behind its first part, these are no codecs


def split(spelling: str) -> tuple[str, str | None]:
    """Name and argument: ("topk", "0.01"), ("int8", None).

    >>> split("randk:0.1:common")
    ('randk', '0.1:common')
    """
    name, colon, argument = spelling.partition(":")
    return name, argument if colon else None


def parts(spelling: str) -> Iterator[tuple[str, str]]:
    """(name, whole part) of each plug-in in a spelling; codings, and places where nothing stands, are left out.

    >>> [name for name, _ in parts("topk:0.01+int8+rice|sign")]
    ['topk', 'int8', 'sign']
    """
    for choice in spelling.split(CHOICE):
        for number, part in enumerate(choice.split(CHAIN)):
            name, _ = split(part)
            if name.strip() and (number == 0 or name not in CODINGS):
                yield name, part


def spelled_names(spelling: str) -> tuple[str, ...]:
    """The names of the plug-ins in a spelling, in their order."""
    return tuple(name for name, _ in parts(spelling))


def spell(name: str, options: Mapping[str, Any]) -> str:
    """The spelling of a plug-in with these options, each by its name.

    >>> spell("randk", {"fraction": 0.1, "common": True})
    'randk:fraction=0.1:common=true'

    Raises `MethodError` of a value that holds a sign with a meaning of its own.
    """
    told = [name]
    for key, value in options.items():
        text = json.dumps(value).replace("e+", "e")  # 1e+20
        if any(sign in key + text for sign in (":", CHAIN, CHOICE)):
            raise MethodError(f"the option {key!r} of {name} cannot be spelled: its value holds one of : + |")
        told.append(f"{key}={text}")
    return ":".join(told)


def spell_table(table: Mapping[str, Any]) -> str:
    """The spelling that `{name = "topk", options = {fraction = 0.01}}` stands for. Raises `MethodError`."""
    name, options = table.get("name"), table.get("options", {})
    if not isinstance(name, str) or not isinstance(options, Mapping) or table.keys() - {"name", "options"}:
        raise MethodError("should be a name, or a table of name and options")
    return spell(name, options)


def is_named(argument: str | None) -> bool:
    """Whether an argument gives its options by their names: its first one does."""
    return argument is not None and "=" in argument.partition(":")[0]


def read_named(plugin: type[Any], name: str, argument: str, group: str = "") -> dict[str, Any]:
    """The options that "fraction=0.1:common" gives. Raises `MethodError` of what is no option or stands there twice."""
    options = {option.name: option for option in options_of(plugin, group)}
    found: dict[str, Any] = {}
    for part in argument.split(":"):
        key, equals, text = part.partition("=")
        if key not in options:
            raise MethodError(f"{name} has no option {key!r} {hint(key, tuple(options))}")
        if key in found:
            raise MethodError(f"{name}: the option {key!r} is given twice")
        found[key] = _value(text) if equals else True
    return found


def read_positional(plugin: type[Any], name: str, argument: str, group: str = "") -> dict[str, Any]:
    """The option behind a colon, "bucketing:2": the plug-in's first, a number; or those given by name.

    Raises `MethodError` where it has none, or where what stands there is no number.
    """
    if is_named(argument):
        return read_named(plugin, name, argument, group)
    known = options_of(plugin, group)
    if not known:
        raise MethodError(f"{name} takes no value, and {argument!r} stands behind its colon")
    for kind in (int, float):
        try:
            return {known[0].name: kind(argument)}
        except ValueError:
            continue
    raise MethodError(f"{name} takes a number behind its colon, {known[0].name}, and not {argument!r}")


def _value(text: str) -> Any:
    """A JSON value, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
