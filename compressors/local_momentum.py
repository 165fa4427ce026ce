"""EF14 of a momentum that the sender keeps itself: the sender's part of 1-bit Adam with local momenta.

    m = b m + (1 - b) x
    with a codec that loses nothing, in the first rounds: send x
    then: p = m + e;  send C(p);  e = p - C(p)

Where the receiver's step is linear in what it is sent, the mean of the senders' momenta is the momentum of the mean.
1-bit Adam (Tang et al. 2021) has all senders begin each round with one common m; that each keeps its own, as 0/1 Adam
(Lu et al. 2022) does, needs nothing from the receiver. Compressing m instead of x is what makes one bit enough: m
changes little from round to round, so what e holds back is soon sent.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from compressors._scratch import scratch
from compressors.codec import Codec, CodecError
from compressors.ef14 import Ef14
from compressors.feedback import LOSSLESS, Feedback, contractive_only, is_bounded


class LocalMomentum(Feedback):
    source = "Tang et al. 2021; Lu et al. 2022"
    state_names: ClassVar[tuple[str, ...]] = ("momentum", "residual")

    def __init__(self, beta: float = 0.9) -> None:
        """beta is the receiver's beta1, 0.9 if not said: "momentum:0.9"."""
        if not 0 < beta < 1:
            raise CodecError(f"a momentum lies between 0 and 1, not at {beta}")
        self.beta = beta
        self.has_momentum = True
        self.spelling = f"momentum:{beta!r}"

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        try:
            return cls() if argument is None else cls(float(argument))
        except CodecError:
            raise
        except ValueError:
            raise CodecError(f"momentum takes a number, such as momentum:0.9, not {argument!r}") from None

    def refuse(self, codec: Codec, size: int) -> str | None:
        return contractive_only("momentum", codec)

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        momentum = scratch("local_momentum.momentum", x.numel(), torch.float32).copy_(state["momentum"])
        momentum.mul_(self.beta).add_(x.detach(), alpha=1 - self.beta)
        if codec.spelling == LOSSLESS:
            body = codec.encode(x, seed)
        else:
            body = Ef14().encode(codec, momentum, {"residual": state["residual"]}, seed)
        if is_bounded(momentum):
            state["momentum"].copy_(momentum)
        return body
