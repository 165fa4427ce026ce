"""Finds codecs and feedbacks by their entry points, so that a user's own package can add some."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from compressors.compose.composed import compose
from compressors.compose.planned import plan
from compressors.core.codec import Codec, CodecError
from compressors.feedback.feedback import Feedback

CODECS, FEEDBACKS = "muster.codecs", "muster.feedbacks"
EXAMPLES = {CODECS: "int8, or identity for none", FEEDBACKS: "ef14, or none"}
JOINED = {"|": "int8|int4", "+": "topk:0.01+int8"}  # an example of what each sign joins


@lru_cache(maxsize=64)
def build(spelling: str) -> Codec:
    """The codec of a spelling, "NAME" or "NAME:ARGUMENT": "int8", "topk:0.01", or of a composition of several,
    "topk:0.01+int8+rice+zstd", see `compressors.compose.composed`, or of a choice for each layer, "int8|int4", see
    `compressors.compose.planned`. Raises `CodecError`."""
    choices = _parts(spelling, "|")
    return _one(spelling) if len(choices) == 1 else plan(choices, [_one(choice) for choice in choices])


def _one(spelling: str) -> Codec:
    names = _parts(spelling, "+")
    return _single(spelling) if len(names) == 1 else compose(names, _single)


def _parts(spelling: str, sign: str) -> list[str]:
    """What the sign joins. Raises `CodecError` if that is nothing at one of its sides."""
    parts = [part.strip() for part in spelling.split(sign)]
    if len(parts) == 1 or all(parts):
        return spelling.split(sign)
    where = "after" if parts[0] else "before"
    if parts[0] and parts[-1]:
        where = "between two"
    the = sign if where == "between two" else f"the {sign}"
    raise CodecError(f"nothing stands {where} {the} of {spelling!r}: it joins codecs, as in {JOINED[sign]}")


def _single(spelling: str) -> Codec:
    name, colon, argument = spelling.partition(":")
    return codec_class(name).parse(argument if colon else None)


@lru_cache(maxsize=64)
def build_feedback(spelling: str) -> Feedback:
    """The feedback of a spelling, "NAME" or "NAME:ARGUMENT": "ef14", "econtrol:0.01". Raises `CodecError`."""
    name, colon, argument = spelling.partition(":")
    return feedback_class(name).parse(argument if colon else None)


def codec_names() -> list[str]:
    return sorted(entry_points(group=CODECS).names)


def feedback_names() -> list[str]:
    return sorted(entry_points(group=FEEDBACKS).names)


def codec_class(name: str) -> type[Codec]:
    """Raises `CodecError`, with the nearest name if nothing is called so."""
    cls = _load(CODECS, "codec", name)
    if not issubclass(cls, Codec):
        raise CodecError(f"the entry point of codec {name!r} is not a compressors.Codec")
    return cls


def feedback_class(name: str) -> type[Feedback]:
    """Raises `CodecError`, with the nearest name if nothing is called so."""
    cls = _load(FEEDBACKS, "feedback", name)
    if not issubclass(cls, Feedback):
        raise CodecError(f"the entry point of feedback {name!r} is not a compressors.Feedback")
    return cls


def _load(group: str, kind: str, name: str) -> type[Any]:
    if not name.strip():
        raise CodecError(f"the name of a {kind} is missing: give one, such as {EXAMPLES[group]}")
    found = entry_points(group=group)
    if name in found.names:
        loaded: type[Any] = found[name].load()
        return loaded
    near = get_close_matches(name, found.names, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise CodecError(f"no {kind} is called {name!r}{meant} (there are: {', '.join(sorted(found.names))})")
