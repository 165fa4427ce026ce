"""`muster compressor list | show`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import emit, warn
from cli.settings import Settings, command
from methods.kinds import CODECS, FEEDBACKS
from methods.registry import broken
from muster.errors import NotFoundError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from compressors import CodecDescription, FeedbackDescription

LIST_NOTE = (
    "BITS a coordinate and how many times SMALLER than float32: at worst, in a chunk of 2^18 coordinates. LOSES: at "
    "most so many times |x|^2, as |C(x) - x|^2, on average where C is random; at 1 or more no feedback helps.\n"
    "They compose: topk:0.01+int8+rice+zstd; or one for each layer: int8|int4."
)


def register(app: typer.Typer) -> None:
    command(app, "list", example="muster compressor list")(list_all)
    command(app, "show", example="muster compressor show topk:0.01+int8")(show)


def list_all(settings: Settings) -> None:
    """Every codec and every feedback that is installed here: how small, how true, what is kept."""
    import compressors
    from cli.render import table
    from compressors import CodecDescription

    found = compressors.everything()

    def human() -> RenderableType:
        from rich.console import Group

        numbers = ("BITS", "SMALLER", "LOSES")
        codecs = table("CODEC", *numbers, "BIAS", "WHAT IT IS", numbers=numbers)
        feedbacks = table("FEEDBACK", "SENDER KEEPS", "RECEIVER KEEPS", "WHAT IT IS")
        for each in found:
            spelling = each.spelling or f"{each.name}:?"
            if isinstance(each, CodecDescription):
                codecs.add_row(spelling, *_figures(each), each.summary)
            else:
                states = (", ".join(names) or "-" for names in (each.sender_state, each.receiver_state))
                feedbacks.add_row(spelling, *states, each.summary)
        return Group(codecs, "", LIST_NOTE, "", feedbacks)

    emit(settings, [asdict(each) for each in found], human)
    for group in (CODECS, FEEDBACKS):
        warn(settings, broken(group).values())


def _figures(codec: CodecDescription) -> tuple[str, str, str, str]:
    if codec.bits_max is None or codec.times_smaller is None:
        return "-", "-", "-", "-"
    bounds = [codec.omega] if codec.omega is not None else []
    bounds += [1 - codec.delta] if codec.delta is not None else []
    loses = f"{min(bounds):.2g}" if bounds else "-"
    if loses == "1" and codec.contractive:
        loses = "<1"
    return (
        f"{codec.bits_max:.3g}",
        f"{_times(codec.times_smaller)}x",
        loses,
        "no" if codec.unbiased else "yes",
    )


def show(
    settings: Settings,
    spelling: Annotated[
        str, typer.Argument(metavar="SPELLING", help="A codec, a composition of codecs, or a feedback.")
    ],
) -> None:
    """One of them, or a composition: its equations, constants, size, state, parts and source."""
    import compressors
    from compressors import CodecDescription

    try:
        found = compressors.describe(spelling)
    except compressors.CodecError as error:
        raise NotFoundError("compressor.not_found", str(error), fix="muster compressor list") from error

    def human() -> RenderableType:
        from rich.console import Group

        from cli.render import facts, prose

        head: list[RenderableType] = [f"{found.spelling or found.name}, a {found.kind}", ""]
        if isinstance(found, CodecDescription):
            rows = _codec_rows(found)
            if found.parts:
                head += [found.summary, facts(found.parts.items()), ""]
        else:
            rows = _feedback_rows(found)
        told = [("argument", found.argument), ("lacking", found.lacking)]
        return Group(*head, prose(found.text), "", facts([*told, *rows, ("source", found.source)]))

    emit(settings, asdict(found), human)


def _codec_rows(codec: CodecDescription) -> list[tuple[str, str]]:
    if codec.bytes_max is None or codec.bits_max is None or codec.times_smaller is None:
        return []
    unbiased = (
        "no" if codec.omega is None else f"yes: E|C(x) - x|^2 <= omega |x|^2, omega = {codec.omega:.4g}"
    )
    contractive = (
        "no"
        if codec.delta is None
        else f"yes: E|C(x) - x|^2 <= (1 - delta) |x|^2, delta = {_share(codec.delta)}"
    )
    return [
        ("unbiased", unbiased),
        ("contractive", contractive),
        ("linear", "yes: bodies may be added up" if codec.linear else "no"),
        (
            "size",
            f"at most {codec.bytes_max:,} bytes for 2^18 coordinates: {codec.bits_max:.4g} bits each, "
            f"{_times(codec.times_smaller)} times smaller than float32",
        ),
    ]


def _times(ratio: float) -> str:
    """66.6; 65,536."""
    return f"{ratio:.3g}" if ratio < 1000 else f"{ratio:,.0f}"


def _share(delta: float) -> str:
    """0.01; 1 - 4.77e-07, which 1.000 would hide."""
    return f"{delta:.4g}" if delta < 0.99 or delta == 1 else f"1 - {1 - delta:.3g}"


def _feedback_rows(feedback: FeedbackDescription) -> list[tuple[str, str]]:
    if feedback.has_momentum is None:
        return []
    return [
        ("sender", _state(feedback.sender_state)),
        ("receiver", _state(feedback.receiver_state)),
        ("rules", feedback.rules),
        ("momentum", "has one: the server's optimizer must have none" if feedback.has_momentum else "none"),
    ]


def _state(names: tuple[str, ...]) -> str:
    if not names:
        return "keeps nothing"
    vectors = "a vector" if len(names) == 1 else f"{len(names)} vectors"
    return f"keeps {vectors} as long as the model: {' and '.join(names)}"
