"""What there is: every codec and every feedback that is installed, and compositions of codecs, as plain data.

Sizes and constants are those of a whole chunk, of 2^18 coordinates.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressors.core.codec import Codec, CodecError
from compressors.core.registry import (
    build,
    build_feedback,
    codec_class,
    codec_names,
    feedback_class,
    feedback_names,
)
from compressors.feedback.feedback import Feedback
from methods.kinds import CODECS, FEEDBACKS
from methods.options import docstring, schema
from methods.registry import loadable, nearest
from methods.spelling import CHAIN, CHOICE, split

CHUNK_SIZE = 1 << 18
FLOAT32_BITS = 32
PARTS = {  # of a composition, beside codecs
    "rice": "Golomb-Rice codes of the gaps between indices.",
    "varint": "The gaps between indices, 7 bits to a byte.",
    "auto": "The gaps between indices, as rice or as varint, whichever is smaller.",
    "zstd": "Entropy coding by zstd, where that makes something smaller.",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of one codec or feedback, as plain data."""

    kind: str
    name: str
    spelling: str  # canonical; "" if it needs an argument and no example is known
    summary: str
    source: str = ""
    argument: str = ""  # what may stand after the colon, where the class tells
    text: str = ""  # its equations, bounds and bytes, as class or module tell them
    schema: Mapping[str, Any] = field(
        default_factory=dict[str, Any]
    )  # JSON Schema of its options; {} of several
    lacking: str = ""  # why there is no spelling, in one sentence


@dataclass(frozen=True, kw_only=True)
class CodecDescription(Description):
    """None is what is not so, or not known without a spelling. `parts` are those of a composition, and what they do."""

    kind: str = "codec"
    parts: Mapping[str, str] = field(default_factory=dict[str, str])
    unbiased: bool | None = None
    contractive: bool | None = None
    linear: bool | None = None
    omega: float | None = None
    delta: float | None = None
    bytes_max: int | None = None
    bits_max: float | None = None  # a coordinate
    times_smaller: float | None = None  # than float32, at least


@dataclass(frozen=True, kw_only=True)
class FeedbackDescription(Description):
    """States are float32 vectors as long as the model."""

    kind: str = "feedback"
    sender_state: tuple[str, ...] = ()
    receiver_state: tuple[str, ...] = ()
    needs_mean: bool = False
    rules: str = ""  # with which it goes, in words
    has_momentum: bool | None = None


def everything() -> tuple[CodecDescription | FeedbackDescription, ...]:
    """Codecs first, then feedbacks, by name, each spelled as its example; without those that cannot be loaded."""
    codecs = (_codec(name, None) for name in loadable(CODECS, Codec))
    return (*codecs, *(_feedback(name, None) for name in loadable(FEEDBACKS, Feedback)))


def describe(spelling: str) -> CodecDescription | FeedbackDescription:
    """Of a name, of a spelling or of a composition. Raises `CodecError` if nothing is spelled so."""
    if CHAIN in spelling or CHOICE in spelling:
        return _composition(spelling)
    name, argument = split(spelling)
    if name in codec_names():
        return _codec(name, None if argument is None else spelling)
    if name in feedback_names():
        return _feedback(name, None if argument is None else spelling)
    if nearest(name, [*codec_names(), *feedback_names()]) in feedback_names():
        return _feedback(name, spelling)  # raises, and tells that name
    return _codec(name, spelling)


def _codec(name: str, spelling: str | None) -> CodecDescription:
    plugin = codec_class(name)
    try:
        codec = build(spelling or plugin.example or name)
    except CodecError as error:
        if spelling is not None:
            raise
        return CodecDescription(name=name, spelling="", lacking=str(error), **_told(plugin))
    return CodecDescription(name=name, spelling=codec.spelling, **_told(plugin), **_facts(codec))


def _composition(spelling: str) -> CodecDescription:
    codec = build(spelling)
    choices = CHOICE in codec.spelling
    spelled = codec.spelling.split(CHOICE if choices else CHAIN)
    listed = f"{', '.join(spelled[:-1])} {'or' if choices else 'and'} {spelled[-1]}"
    summary = f"For each layer {listed}." if choices else f"Composed of {listed}."
    module = inspect.getmodule(type(codec))
    return CodecDescription(
        name=codec.spelling,
        spelling=codec.spelling,
        summary=summary if len(spelled) > 1 else f"The same as {codec.spelling}.",
        text=inspect.cleandoc(module.__doc__ or "") if module else "",
        parts={each: _part(each) for each in spelled},
        **_facts(codec),
    )


def _part(spelling: str) -> str:
    known = PARTS.get(split(spelling)[0])
    return known or describe(spelling).summary


def _facts(codec: Codec) -> dict[str, Any]:
    bytes_max = codec.bytes_max(CHUNK_SIZE)
    bits = 8 * bytes_max / CHUNK_SIZE
    return {
        "unbiased": codec.unbiased,
        "contractive": codec.contractive,
        "linear": codec.linear,
        "omega": codec.omega(CHUNK_SIZE) if codec.unbiased else None,
        "delta": codec.delta(CHUNK_SIZE) if codec.contractive else None,
        "bytes_max": bytes_max,
        "bits_max": bits,
        "times_smaller": FLOAT32_BITS / bits,
    }


def _feedback(name: str, spelling: str | None) -> FeedbackDescription:
    plugin = feedback_class(name)
    try:
        feedback = build_feedback(spelling or plugin.example or name)
    except CodecError as error:
        if spelling is not None:
            raise
        return FeedbackDescription(name=name, spelling="", lacking=str(error), **_told(plugin))
    return FeedbackDescription(
        name=name,
        spelling=feedback.spelling,
        sender_state=feedback.state_names,
        receiver_state=feedback.receiver_state_names,
        needs_mean=feedback.needs_mean,
        rules=_rules(feedback),
        has_momentum=feedback.has_momentum,
        **_told(plugin),
    )


def _rules(feedback: Feedback) -> str:
    if not feedback.needs_mean:
        return "any: what is decoded is itself an update"
    return "any, where the receiver keeps a state for each sender, as a run does; with one for all, the mean alone"


def _told(plugin: type[Codec] | type[Feedback]) -> dict[str, Any]:
    """By the class, and where it says nothing by its module, as there is one algorithm to a file."""
    module = inspect.getmodule(plugin)
    text = docstring(plugin) or inspect.cleandoc((module.__doc__ if module else None) or "")
    return {
        "summary": text.partition("\n")[0],
        "source": plugin.source,
        "argument": inspect.cleandoc(getattr(plugin.__dict__.get("__init__"), "__doc__", None) or ""),
        "text": text,
        "schema": schema(plugin),
    }
