"""DGC: momentum on the sender's side of a sparse codec, so that what waits keeps its momentum.

    u = m u + x;  v = v + u                 Nesterov: u = m (u + x);  v = v + u + x
    send C(v);  v = v - C(v);  u = 0 where C(v) is not

Lin, Han, Mao, Wang, Dally 2018. Momentum at the receiver would act when a coordinate is sent, as if nothing had
happened in the meantime; here it acts when it was learnt (momentum correction). What was sent forgets its
momentum (factor masking), or a stale direction would go on. The receiver takes the mean's plain step: with
momentum of its own it would count twice. Gradients are clipped, if at all, before they come here, each sender's
to threshold / sqrt(senders), or one large one would stay in v for long.

The paper's warm-up begins with a larger share: `warm_up`.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from compressors._scratch import scratch
from compressors.codec import Codec, CodecError
from compressors.feedback import Feedback, contractive_only, is_bounded

PROBE = 64


class Dgc(Feedback):
    source = "Lin et al. 2018"
    state_names: ClassVar[tuple[str, ...]] = ("velocity", "residual")

    def __init__(self, momentum: float = 0.9, *, nesterov: bool = False) -> None:
        """momentum from 0 (EF14) to below 1, the paper's 0.9 if not said; "dgc:0.9:nesterov" looks ahead."""
        if not 0 <= momentum < 1:
            raise CodecError(f"dgc's momentum lies from 0 to below 1, not at {momentum}")
        self.momentum = momentum
        self.nesterov = nesterov
        self.has_momentum = momentum > 0
        self.spelling = f"dgc:{momentum!r}" + (":nesterov" if nesterov else "")

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        if argument is None:
            return cls()
        number, colon, kind = argument.partition(":")
        try:
            momentum = float(number)
        except ValueError:
            momentum = None
        if momentum is None or (colon and kind != "nesterov"):
            raise CodecError(f"dgc takes a momentum, such as dgc:0.9 or dgc:0.9:nesterov, not {argument!r}")
        return cls(momentum, nesterov=bool(colon))

    def refuse(self, codec: Codec, size: int) -> str | None:
        refusal = contractive_only("dgc", codec)
        if refusal is not None or self.momentum == 0:
            return refusal
        probe = torch.linspace(1, 2, PROBE)
        decoded = torch.empty(PROBE)
        codec.decode(codec.encode(probe, 0), decoded)
        if not decoded.all():
            return None
        return (
            f"dgc needs a codec that leaves coordinates out, such as topk:0.001; {codec.spelling} sends all, "
            "so no momentum would ever be left"
        )

    def codec_in(self, codec: str, step: int, warm_up_rounds: int) -> str:
        """The codec with a larger share, where its spelling begins with a share: topk:0.001."""
        name, _, argument = codec.partition(":")
        fraction, plus, rest = argument.partition("+")
        try:
            share = warm_up(float(fraction), step - 1, warm_up_rounds)
        except ValueError:
            return super().codec_in(codec, step, warm_up_rounds)
        return codec if step > warm_up_rounds else f"{name}:{share!r}{plus}{rest}"

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
    """The share to keep in an epoch, from 0 on: fraction^((epoch + 1) / (epochs + 1)), then `fraction`.

    0.001 over 5 epochs: 32 %, 10 %, 3.2 %, 1 %, 0.32 %, then 0.1 %.
    """
    if not 0 < fraction <= 1 or epoch < 0 or epochs < 0:
        raise ValueError(f"no share to keep at fraction {fraction}, epoch {epoch} of {epochs}")
    share: float = fraction ** (min(epoch + 1, epochs + 1) / (epochs + 1))
    return share
