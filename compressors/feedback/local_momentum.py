"""EF14 of a momentum that the sender keeps itself: the sender's part of 1-bit Adam.

    m = b m + (1 - b) x
    with a codec that loses nothing, in the first rounds: send x
    then: p = m + e;  m = C(p), which is sent;  e = p - m

Where the receiver's step is linear in what it is sent, the mean of the senders' momenta is the momentum of the mean.
1-bit Adam (Tang et al. 2021) has all senders begin each round with the mean of what was sent; here each goes on from
what it has sent itself, which needs nothing from the receiver, and yet the mean moves as there:

    mean m = b mean m + (1 - b) mean x + mean e - mean e',   e before and e' after the round

That m becomes what was sent, and not what it would have been without loss, is part of it: on scikit-learn's digits
(tests/compressors/test_acceptance_optimizers.py) 1-bit Adam ends anywhere between .65 and .98 with the latter, and as
Adam does, at .98 or .99, with the former. Compressing m instead of x is what makes one bit enough: m changes little
from round to round, so what e holds back is soon sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from compressors.core.codec import Codec, CodecError
from compressors.core.scratch import scratch
from compressors.feedback.ef14 import Ef14
from compressors.feedback.feedback import LOSSLESS, Feedback, contractive_only, is_bounded
from methods import Requirement, SpecValues, demand


class LocalMomentum(Feedback):
    source = "Tang et al. 2021"
    state_names: ClassVar[tuple[str, ...]] = ("momentum", "residual")

    knobs: ClassVar[Mapping[str, str]] = {
        "beta": "momentum, above 0 and below 1: the server's beta1",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        beta: float = 0.9

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

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        """The server that divides by what it has learnt."""
        return demand(
            spec,
            f"compression.feedback {self.spelling} belongs to server.optimizer onebit-adam",
            {"server.optimizer": "onebit-adam"},
        )

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        momentum = scratch("local_momentum.momentum", x.numel(), torch.float32, x.device).copy_(
            state["momentum"]
        )
        momentum.mul_(self.beta).add_(x.detach(), alpha=1 - self.beta)
        if codec.spelling == LOSSLESS:
            body = codec.encode(x, seed)
        else:
            residual = state["residual"]
            before = scratch("local_momentum.before", x.numel(), torch.float32, x.device).copy_(residual)
            body = Ef14().encode(codec, momentum, {"residual": residual}, seed)
            momentum.add_(before).sub_(residual)  # p - e, what was sent
        if is_bounded(momentum):
            state["momentum"].copy_(momentum)
        return body
