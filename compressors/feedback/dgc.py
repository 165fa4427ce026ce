"""DGC: momentum on the sender's side of a sparse codec, so that what waits keeps its momentum.

    x = x min(1, threshold / (sqrt(n) |x|)) of n senders, where there is a threshold
    u = m u + x;  v = v + u                 Nesterov: u = m (u + x);  v = v + u + x
    send C(v);  v = v - C(v);  u = 0 where C(v) is not

Lin, Han, Mao, Wang, Dally 2018. Momentum at the receiver would act when a coordinate is sent, as if nothing had
happened in the meantime; here it acts when it was learnt (momentum correction). What was sent forgets its
momentum (factor masking), or a stale direction would go on. The receiver takes the mean's plain step: with
momentum of its own it would count twice. Clipping comes before all that, or a large x would stay in v for long; |x| is
the norm of a sender's whole update, so it is done before the update is cut into chunks: `Dgc.norm_max`. n are those
that are asked for an update, not those that will have delivered one, as nobody knows these yet.

The paper's warm-up begins with a larger share: `warm_up`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import ClassVar, Self

import torch
from torch import Tensor

from compressors.compose.planned import SPELLING_MAX
from compressors.core.codec import Codec, CodecError
from compressors.core.registry import build
from compressors.core.scratch import scratch
from compressors.feedback.feedback import Feedback, contractive_only, is_bounded

PROBE = 64
DIGITS = 4  # of a larger share: with all of them two machines might spell it differently
SHARE_LENGTH_MAX = 10  # so no share is spelled longer: 1.234e-100


class Dgc(Feedback):
    source = "Lin et al. 2018"
    state_names: ClassVar[tuple[str, ...]] = ("velocity", "residual")

    knobs: ClassVar[Mapping[str, str]] = {
        "momentum": "from 0 (EF14) to below 1",
        "nesterov": "looks ahead",
        "clip": "clips the update of each of n senders to the norm clip / sqrt(n)",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        momentum: float = 0.9
        nesterov: bool = False
        clip: float | None = None

    def __init__(self, momentum: float = 0.9, *, nesterov: bool = False, clip: float | None = None) -> None:
        """momentum from 0 (EF14) to below 1, the paper's 0.9 if not said; then "nesterov", which looks
        ahead, and "clip=1.0", which clips the update of each of n senders to the norm 1.0 / sqrt(n)."""
        if not 0 <= momentum < 1:
            raise CodecError(f"dgc's momentum lies from 0 to below 1, not at {momentum}")
        if clip is not None and not (clip > 0 and isfinite(clip)):
            raise CodecError(f"dgc clips to a norm above 0, not to {clip}")
        self.momentum = momentum
        self.nesterov = nesterov
        self.clip = clip
        self.has_momentum = momentum > 0
        told = "" if clip is None else f":clip={clip!r}"
        self.spelling = f"dgc:{momentum!r}" + ":nesterov" * nesterov + told

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        if argument is None:
            return cls()
        number, *options = argument.split(":")
        clips = [option.removeprefix("clip=") for option in options if option.startswith("clip=")]
        ahead = options.count("nesterov")
        wrong = CodecError(
            "dgc takes a momentum, then nesterov, a threshold or both, such as dgc:0.9 or "
            f"dgc:0.9:nesterov:clip=1.0, not {argument!r}"
        )
        if ahead > 1 or len(clips) > 1 or ahead + len(clips) < len(options):
            raise wrong
        try:
            momentum, clip = float(number), float(clips[0]) if clips else None
        except ValueError:
            raise wrong from None
        return cls(momentum, nesterov=bool(ahead), clip=clip)

    def refuse(self, codec: Codec, size: int) -> str | None:
        refusal = contractive_only("dgc", codec)
        if refusal is not None or self.momentum == 0:
            return refusal
        probe = torch.linspace(1, 2, PROBE, dtype=torch.float32)
        decoded = torch.empty(PROBE, dtype=torch.float32)
        codec.decode(codec.encode(probe, 0), decoded)
        if not decoded.all():
            return None
        return (
            f"dgc needs a codec that leaves coordinates out, such as topk:0.001; {codec.spelling} sends all, "
            "so no momentum would ever be left"
        )

    def codec_in(self, codec: str, step: int, warm_up_rounds: int) -> str:
        """The codec with a larger share, or each of a choice; without loss where none has a share."""
        if step > warm_up_rounds:
            return codec
        shared = build(codec).sharing(lambda fraction: warm_up(fraction, step - 1, warm_up_rounds))
        return super().codec_in(codec, step, warm_up_rounds) if shared is None else shared.spelling

    def refuse_warm_up(self, codec: Codec) -> str | None:
        """Why this codec cannot have larger shares at first, in one sentence; None if it can. What is the same at
        every step is looked at: only the spellings of shares differ, and those of a choice are limited together."""
        shares: list[float] = []

        def as_it_is(fraction: float) -> float:
            shares.append(fraction)
            return fraction

        codec.sharing(as_it_is)
        longer = sum(max(0, SHARE_LENGTH_MAX - len(repr(fraction))) for fraction in shares)
        if len(codec.spelling) + longer <= SPELLING_MAX:
            return None
        return (
            f"the larger shares of its first rounds could take more than the {SPELLING_MAX} characters in which a "
            f"choice of codecs is spelled, and {codec.spelling} takes {len(codec.spelling)} without"
        )

    def norm_max(self, senders: int) -> float:
        return inf if self.clip is None else self.clip / sqrt(senders)

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        size = x.numel()
        velocity = scratch("dgc.velocity", size, torch.float32, x.device).copy_(state["velocity"])
        pending = scratch("dgc.pending", size, torch.float32, x.device)
        if self.nesterov:
            velocity.add_(x.detach()).mul_(self.momentum)
            torch.add(state["residual"], velocity, out=pending).add_(x.detach())
        else:
            velocity.mul_(self.momentum).add_(x.detach())
            torch.add(state["residual"], velocity, out=pending)
        body = codec.encode(pending, seed)
        if is_bounded(pending) and is_bounded(velocity):
            sent = scratch("dgc.sent", size, torch.float32, x.device)
            codec.decode(body, sent)
            torch.sub(pending, sent, out=state["residual"])
            state["velocity"].copy_(velocity.masked_fill_(sent.bool(), 0.0))
        return body


def warm_up(fraction: float, epoch: int, epochs: int = 5) -> float:
    """The share to keep in an epoch, from 0 on: fraction^((epoch + 1) / (epochs + 1)) to 4 digits, then `fraction`.

    0.001 over 5 epochs: 32 %, 10 %, 3.2 %, 1 %, 0.32 %, then 0.1 %.
    """
    if not 0 < fraction <= 1 or epoch < 0 or epochs < 0:
        raise ValueError(f"no share to keep at fraction {fraction}, epoch {epoch} of {epochs}")
    if epoch >= epochs:
        return fraction
    return float(f"{fraction ** ((epoch + 1) / (epochs + 1)):.{DIGITS}g}")
