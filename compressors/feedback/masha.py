"""MASHA's link: what is compressed is how far an operator has moved since an anchor, where both ends know it exactly.

MASHA is extragradient for variational inequalities (min-max problems, adversarial training), whose operator is
F = mean F_m, one part a sender: a gradient, with its sign turned where one maximises. At an anchor point w

    sender    sends F_m(w) without loss
    all       half = w - gamma F(w)
    then      sender m   p = F_m(half) - F_m(w) [+ e_m];  sends C(p);  [e_m = p - C(p)]
              receiver   F_m(half) is estimated by F_m(w) + C(p), for each sender by itself
              all        z = half - gamma (mean of the estimates - F(w));  half = tau z + (1 - tau) w - gamma F(w)

and with probability 1 - tau, by a coin common to all, w = z. MASHA1 has an unbiased codec, MASHA2, with what is in
brackets, a contractive one and EF14: Beznosikov, Richtarik, Diskin, Ryabinin, Gasnikov 2022, there with the receiver's
answer, the mean of the C(p), compressed too; here versions go down, nearly whole. What is compressed vanishes as z and
w settle; to compress F itself, be it with feedback, diverges on a saddle, where nothing pulls a wrong step back.

1 - tau near the codec's share of the traffic makes the dense rounds cost as much as all others. gamma goes with tau
and with what the codec loses: sqrt(1 - tau) / (L sqrt(1 + omega / senders)) and below, L F's Lipschitz constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from numpy.random import PCG64DXSM
from torch import Tensor

from compressors.core.codec import Codec, CodecError
from compressors.core.scratch import scratch
from compressors.feedback.ef21 import encode_bounded
from compressors.feedback.feedback import LOSSLESS, Feedback, is_bounded
from methods import Requirement, SpecValues, demand


class Masha(Feedback):
    """MASHA: what is sent is the step from an anchor, which bodies without loss set, and what was lost since."""

    example = "masha:0.9"
    source = "Beznosikov, Richtarik, Diskin, Ryabinin, Gasnikov 2022"
    state_names: ClassVar[tuple[str, ...]] = ("anchor", "residual")
    receiver_state_names: ClassVar[tuple[str, ...]] = ("anchor",)
    whole_batches: ClassVar[bool] = True
    receiver_follows = False
    needs_mean = True

    knobs: ClassVar[Mapping[str, str]] = {
        "tau": "chance that an anchor stays, above 0 and below 1",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        tau: float

    def __init__(self, tau: float) -> None:
        """tau, between 0 and 1: the chance that an anchor stays."""
        if not 0 < tau < 1:
            raise CodecError(f"masha's tau lies between 0 and 1, not at {tau}")
        self.tau = tau
        self.spelling = f"masha:{tau!r}"

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        try:
            return cls(float(argument or ""))
        except CodecError:
            raise
        except ValueError:
            raise CodecError(
                f"masha needs the chance tau that an anchor stays, such as masha:0.9, not {argument!r}"
            ) from None

    def refuse(self, codec: Codec, size: int) -> str | None:
        if codec.spelling == LOSSLESS:
            return "masha compresses what lies between its dense rounds, and identity does not"
        if codec.unbiased or codec.contractive:
            return None
        return f"masha needs an unbiased codec or a contractive one, and {codec.spelling} is neither"

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        """The server that takes the half steps."""
        return demand(
            spec,
            f"compression.feedback {self.spelling} belongs to server.optimizer masha",
            {"server.optimizer": "masha"},
        )

    def codec_in(self, codec: str, step: int, warm_up_rounds: int) -> str:
        """Without loss wherever the version that a round begins with is an anchor."""
        return LOSSLESS if is_anchor(self.tau, step - 1) else super().codec_in(codec, step, warm_up_rounds)

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        if codec.spelling == LOSSLESS:  # the residual waits: it belongs to the steps, not to the anchor
            if is_bounded(x):
                state["anchor"].copy_(x.detach())
            return codec.encode(x.detach(), seed)
        # Runs have float32; in double precision the method can be followed to its end. A buffer keeps its dtype.
        moved = scratch(f"masha.moved {x.dtype}", x.numel(), x.dtype, x.device)
        torch.sub(x.detach(), state["anchor"], out=moved)
        if not codec.unbiased:
            moved.add_(state["residual"])
        sent = scratch(f"masha.sent {x.dtype}", x.numel(), x.dtype, x.device)
        body = encode_bounded(codec, moved, sent, seed)
        if is_bounded(moved) and not codec.unbiased:
            torch.sub(moved, sent, out=state["residual"])
        return body

    def receive(self, decoded: Tensor, state: dict[str, Tensor], share: float = 1.0) -> None:
        decoded.add_(state["anchor"])


def is_anchor(tau: float, version: int) -> bool:
    """Whether a model version is one where all send without loss: the same for all.

    The first one is, the one after an anchor never, as it is that anchor's half step, and any other with
    probability 1 - tau.
    """
    anchors = 0
    while version > 0 and int(PCG64DXSM(version).random_raw()) >= tau * 2.0**64:
        anchors += 1
        version -= 1
    return (anchors + (version == 0)) % 2 == 1
