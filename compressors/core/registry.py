"""Finds codecs and feedbacks by their names, so that a user's own package can add some; errors are `CodecError`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

from compressors.compose.composed import compose
from compressors.compose.planned import plan
from compressors.core.codec import Codec, CodecError
from compressors.feedback.feedback import Feedback
from methods import options, registry, spelling
from methods.kinds import CODECS, FEEDBACKS, word
from methods.registry import MethodError
from methods.spelling import CHAIN, CHOICE

EXAMPLES = {CODECS: "int8, or identity for none", FEEDBACKS: "ef14, or none"}
JOINED = {CHOICE: "int8|int4", CHAIN: "topk:0.01+int8"}  # an example of what each sign joins

P = TypeVar("P", Codec, Feedback)


@lru_cache(maxsize=64)
def build(spelled: str) -> Codec:
    """The codec of a spelling, "NAME" or "NAME:ARGUMENT": "int8", "topk:0.01", or of a composition of several,
    "topk:0.01+int8+rice+zstd", see `compressors.compose.composed`, or of a choice for each layer, "int8|int4", see
    `compressors.compose.planned`. Raises `CodecError`."""
    choices = _parts(spelled, CHOICE)
    return _one(spelled) if len(choices) == 1 else plan(choices, [_one(choice) for choice in choices])


def _one(spelled: str) -> Codec:
    names = _parts(spelled, CHAIN)
    return _single(spelled) if len(names) == 1 else compose(names, _single)


def _parts(spelled: str, sign: str) -> list[str]:
    """What the sign joins. Raises `CodecError` if that is nothing at one of its sides."""
    parts = [part.strip() for part in spelled.split(sign)]
    if len(parts) == 1 or all(parts):
        return spelled.split(sign)
    where = "after" if parts[0] else "before"
    if parts[0] and parts[-1]:
        where = "between two"
    the = sign if where == "between two" else f"the {sign}"
    raise CodecError(f"nothing stands {where} {the} of {spelled!r}: it joins codecs, as in {JOINED[sign]}")


def _single(spelled: str) -> Codec:
    name, argument = spelling.split(spelled)
    return _made(codec_class(name), CODECS, name, argument)


@lru_cache(maxsize=64)
def build_feedback(spelled: str) -> Feedback:
    """The feedback of a spelling, "NAME" or "NAME:ARGUMENT": "ef14", "econtrol:0.01". Raises `CodecError`."""
    name, argument = spelling.split(spelled)
    return _made(feedback_class(name), FEEDBACKS, name, argument)


def _made(plugin: type[P], group: str, name: str, argument: str | None) -> P:
    """Of options that are given by their names, "topk:fraction=0.01", or of the argument that the class reads."""
    if argument is None or not spelling.is_named(argument):
        return plugin.parse(argument)
    try:
        found: P = options.make(plugin, name, spelling.read_named(plugin, name, argument, group), group)
    except CodecError:
        raise
    except MethodError as error:
        raise CodecError(str(error)) from error
    return found


def codec_names() -> list[str]:
    """What is installed, sorted."""
    return list(registry.names(CODECS))


def feedback_names() -> list[str]:
    """What is installed, sorted."""
    return list(registry.names(FEEDBACKS))


def codec_class(name: str) -> type[Codec]:
    """Raises `CodecError`, with the nearest name if nothing is called so."""
    return _class(CODECS, name, Codec)


def feedback_class(name: str) -> type[Feedback]:
    """Raises `CodecError`, with the nearest name if nothing is called so."""
    return _class(FEEDBACKS, name, Feedback)


def _class(group: str, name: str, base: type[Any]) -> type[Any]:
    if not name.strip():
        raise CodecError(f"the name of {_a(word(group))} is missing: give one, such as {EXAMPLES[group]}")
    try:
        return registry.find(group, name, base)
    except MethodError as error:
        raise CodecError(str(error)) from error


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
