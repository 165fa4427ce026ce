"""The options of a plug-in: the fields of one frozen dataclass.

That dataclass is the plug-in's own class, or, where the class has other things to set up than its options, what
the class names `Options`:

    @dataclass(frozen=True, kw_only=True)
    class Oort:                                       class TopK(Codec):
        knobs: ClassVar = {"explore": "..."}              @dataclass(frozen=True, kw_only=True)
        explore: float = 0.1                              class Options:
                                                              fraction: float

A field is an option unless its kind's `given` names it (`methods.kinds`). Its annotation is its type, its default
makes it optional, and `knobs` may say what it is: its unit and range, and what raising it does. What goes beyond a type
(a range, two options that contradict each other) the class checks in `__post_init__` or `__init__`, with a
`ValueError` whose message is one sentence.
"""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from methods.kinds import KINDS
from methods.registry import MethodError, hint

_NUMBERS = {int: "integer", float: "number", bool: "boolean", str: "string"}
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """`default` is None and `required` True where it has to be given; `text` is what the plug-in says of it."""

    name: str
    type: Any
    default: Any = None
    required: bool = False
    text: str = ""

    def schema(self) -> dict[str, Any]:
        """Its JSON Schema."""
        found = _schema(self.type)
        if self.text:
            found["description"] = self.text
        if not self.required:
            found["default"] = self.default
        return found


@dataclass(frozen=True)
class Wrong:
    """`option` is the key that is wrong, "" for the plug-in as a whole."""

    option: str
    message: str


def docstring(plugin: type[Any]) -> str:
    """What the class says of itself; empty where that is only the signature that Python gives a dataclass."""
    own = inspect.cleandoc(plugin.__doc__ or "")
    return "" if own.startswith(f"{plugin.__name__}(") else own


def options_class(plugin: type[Any]) -> type[Any]:
    """The dataclass whose fields are the plug-in's options."""
    found: type[Any] = getattr(plugin, "Options", plugin)
    return found


def options_of(plugin: type[Any], group: str = "") -> tuple[Option, ...]:
    """The options in the order of the class; none of a plug-in that is no dataclass and has no `Options`."""
    source = options_class(plugin)
    if not dataclasses.is_dataclass(source):
        return ()
    given = KINDS[group].given if group in KINDS else ()
    fields = [field for field in dataclasses.fields(source) if field.init and field.name not in given]
    if not fields:
        return ()
    told: Mapping[str, str] = getattr(plugin, "knobs", {})
    hints = _hints(source)
    return tuple(
        Option(
            name=field.name,
            type=hints.get(field.name, Any),
            default=_default(field),
            required=_is_required(field),
            text=told.get(field.name, ""),
        )
        for field in fields
    )


def wrong_names(plugin: type[Any], name: str, values: Mapping[str, Any], group: str = "") -> Iterator[Wrong]:
    """Options that the plug-in has not, and those that it needs and that are not there."""
    options = options_of(plugin, group)
    known = tuple(option.name for option in options)
    for key in values:
        if key not in known:
            yield Wrong(key, f"{name} has no option {key!r} {hint(key, known)}")
    for option in options:
        if option.required and option.name not in values:
            yield Wrong(option.name, f"{name} needs the option {option.name!r}")


def wrong_types(plugin: type[Any], values: Mapping[str, Any], group: str = "") -> Iterator[Wrong]:
    """Values that are not of their option's type."""
    for option in options_of(plugin, group):
        if option.name in values and not _fits(values[option.name], option.type):
            yield Wrong(option.name, f"should be {_words(option.type)}, but is {values[option.name]!r}")


def refusal(plugin: type[Any], name: str, values: Mapping[str, Any], group: str = "") -> str | None:
    """What the class says against values whose names and types are right; None if nothing, or if it has to be given
    more to be made than its options."""
    source = options_class(plugin)
    given = KINDS[group].given if group in KINDS else ()
    if not dataclasses.is_dataclass(source):
        return None
    if any(field.name in given and _is_required(field) for field in dataclasses.fields(source)):
        return None
    types = {option.name: option.type for option in options_of(plugin, group)}
    try:
        source(**{key: _floated(value, types[key]) for key, value in values.items()})
    except ValueError as error:
        return str(error)
    except TypeError as error:
        return f"{name}: {error}"
    return None


def make(
    plugin: type[Any],
    name: str,
    values: Mapping[str, Any],
    group: str = "",
    given: Mapping[str, Any] | None = None,
) -> Any:
    """The plug-in, made of its options and of what its kind is given.

    Raises `MethodError` with a sentence if an option is unknown, missing, of a wrong type or refused by the class.
    """
    for wrong in wrong_names(plugin, name, values, group):
        raise MethodError(wrong.message)
    types = {option.name: option.type for option in options_of(plugin, group)}
    values = {key: _floated(value, types[key]) for key, value in values.items()}
    mistyped = [f"{name}: {wrong.option} {wrong.message}" for wrong in wrong_types(plugin, values, group)]
    try:
        if (source := options_class(plugin)) is not plugin:
            source(**values)
        made = plugin(**values, **(given or {}))
    except MethodError:
        raise
    except ValueError as error:
        raise MethodError(str(error)) from error
    except TypeError as error:
        raise MethodError(mistyped[0] if mistyped else f"{name}: {error}") from error
    if mistyped:  # what the class says of a value is better, and this is for those that it lets pass
        raise MethodError(mistyped[0])
    return made


def schema(plugin: type[Any], group: str = "") -> dict[str, Any]:
    """JSON Schema of the plug-in's table of options."""
    options = options_of(plugin, group)
    return {
        "type": "object",
        "title": (docstring(plugin) or plugin.__name__).partition("\n")[0],
        "properties": {option.name: option.schema() for option in options},
        "required": [option.name for option in options if option.required],
        "additionalProperties": False,
    }


def _floated(value: Any, wanted: Any) -> Any:
    """A whole number as a float, where the option is one, as a float's spelling has a point."""
    plain = float in _alternatives(wanted) and int not in _alternatives(wanted) and type(value) is int
    return float(value) if plain and abs(value) <= sys.float_info.max else value


def _hints(source: type[Any]) -> Mapping[str, Any]:
    try:
        return get_type_hints(source)
    except NameError:  # some name is there for type checkers only: what is given, such as a schedule's spec
        known = {**vars(builtins), **vars(sys.modules.get(source.__module__, builtins))}
        return {field.name: _resolved(field.type, known) for field in dataclasses.fields(source)}


def _resolved(annotation: Any, known: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, known)  # the source code of an installed class, as get_type_hints does it
    except NameError:
        return Any


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _alternatives(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)


def _schema(wanted: Any) -> dict[str, Any]:
    alternatives = _alternatives(wanted)
    if len(alternatives) > 1:
        return {"anyOf": [_schema(each) for each in alternatives]}
    if wanted is type(None) or wanted is None:
        return {"type": "null"}
    if wanted in _NUMBERS:
        return {"type": _NUMBERS[wanted]}
    origin = get_origin(wanted) or wanted
    if origin is Literal:
        return {"enum": list(get_args(wanted))}
    if _is_mapping(origin):
        return {"type": "object"}
    if _is_array(origin):
        inner = [each for each in get_args(wanted) if each is not Ellipsis]
        return {"type": "array", **({"items": _schema(inner[0])} if len(set(inner)) == 1 else {})}
    return {}


def _fits(value: Any, wanted: Any) -> bool:
    """As strict as the run spec: an integer is a number, true is neither; a list is any sequence."""
    alternatives = _alternatives(wanted)
    if len(alternatives) > 1:
        return any(_fits(value, each) for each in alternatives)
    if wanted is type(None) or wanted is None:
        return value is None
    if wanted in (int, float):
        known = (int,) if wanted is int else (int, float)
        return isinstance(value, known) and not isinstance(value, bool)
    if wanted in (bool, str):
        return isinstance(value, wanted)
    origin = get_origin(wanted) or wanted
    if origin is Literal:
        return value in get_args(wanted)
    if _is_mapping(origin):
        return isinstance(value, Mapping)
    if _is_array(origin):
        inner = [each for each in get_args(wanted) if each is not Ellipsis]
        items = isinstance(value, list | tuple)
        return items and (len(set(inner)) != 1 or all(_fits(each, inner[0]) for each in value))
    return True


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_array(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence | AbstractSet) and origin is not str


def _words(wanted: Any) -> str:
    alternatives = [each for each in _alternatives(wanted) if each is not type(None)]
    if len(alternatives) > 1:
        return " or ".join(_words(each) for each in alternatives)
    only = alternatives[0]
    if only in _WORDS:
        return _WORDS[only]
    origin = get_origin(only) or only
    if origin is Literal:
        return " or ".join(repr(each) for each in get_args(only))
    return "a table" if _is_mapping(origin) else "an array"
