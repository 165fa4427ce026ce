"""MASHA: compressed extragradient for variational inequalities, such as min-max problems and adversarial training.

The operator is F = mean F_m, one part a sender (a gradient, with its sign turned where one maximises); w is an
older point at which all know F and each its own F_m.

    all         half = tau z + (1 - tau) w - gamma F(w)
    sender m    p = gamma (F_m(half) - F_m(w)) [+ e_m];  sends C(p);  [e_m = p - C(p)]
    receiver    a = mean C(p) [+ e];  sends Cs(a);  [e = a - Cs(a)]
    all         z = half - Cs(a)
    then, with probability 1 - tau by a coin common to all: w = z, and each sends its F_m(w) without loss

MASHA1 has unbiased codecs and no feedback, MASHA2, with what is in brackets, contractive ones and EF14: Beznosikov,
Richtarik, Diskin, Ryabinin, Gasnikov 2022. What is compressed are differences that vanish as z and w settle; to
compress F itself, be it with feedback, diverges on a saddle, where nothing pulls a wrong step back.

1 - tau near the codec's share of the traffic makes the dense exchanges cost as much as all others. gamma goes with
tau and with what the codecs lose: sqrt(1 - tau) / (L sqrt(1 + omega / senders)) and below, L F's Lipschitz constant.
A random-k reply to random-k messages multiplies the two variances: reply with a codec that loses little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.random import PCG64DXSM, SeedSequence
from torch import Tensor

from compressors.codec import Codec
from compressors.ef14 import Ef14
from compressors.feedback import Feedback, NoFeedback


@dataclass(frozen=True, kw_only=True)
class Masha:
    """Vectors are [size] float32. The feedback's states are {} in MASHA1 and the two ends' residuals in MASHA2."""

    gamma: float
    tau: float
    codec: Codec
    reply_codec: Codec
    feedback: Feedback  # NoFeedback: MASHA1; Ef14: MASHA2

    def __post_init__(self) -> None:
        if not (self.gamma > 0 and 0 <= self.tau < 1):
            raise ValueError(f"gamma is above 0 and tau from 0 to below 1, not {self.gamma} and {self.tau}")

    def refuse(self, size: int) -> str | None:
        """Why it would not converge with these codecs, in one sentence; None if it can."""
        if not isinstance(self.feedback, NoFeedback | Ef14):
            return f"MASHA is without feedback or with ef14, not with {self.feedback.spelling}"
        for codec in (self.codec, self.reply_codec):
            if isinstance(self.feedback, Ef14):
                if refusal := self.feedback.refuse(codec, size):
                    return refusal
            elif not codec.unbiased:
                return f"MASHA1 needs unbiased codecs, and {codec.spelling} is not one: give it ef14 (MASHA2)"
        return None

    def half_step(self, z: Tensor, w: Tensor, at_w: Tensor) -> Tensor:
        """Where the operator is asked next; `at_w` is F(w), the mean."""
        return torch.lerp(w, z, self.tau).sub_(at_w, alpha=self.gamma)

    def send(self, at_half: Tensor, at_w: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        """A sender's body, from its own operator at both points."""
        return self.feedback.encode(self.codec, torch.sub(at_half, at_w).mul_(self.gamma), state, seed)

    def reply(self, mean: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        """The receiver's body, from the mean of what was decoded."""
        return self.feedback.encode(self.reply_codec, mean, state, seed)

    def move(self, half: Tensor, decoded: Tensor) -> Tensor:
        """The next z, from the decoded reply."""
        return half - decoded

    def refreshes(self, seed: int, round: int) -> bool:
        """Whether w becomes z after this round: the same for all that know the run's seed."""
        word = int(PCG64DXSM(SeedSequence([seed, round])).random_raw())
        return word >= self.tau * 2.0**64
