"""1-bit Adam: Adam whose second moment is frozen after a while, so that the first may be sent at one bit each way.

    first rounds   m = b1 m + (1 - b1) mean g;  v = b2 v + (1 - b2) mean g^2;  x -= lr m / (sqrt v + eps)
    then           sender i    c = b1 m + (1 - b1) g_i + e_i;  q_i = C(c);  e_i = c - q_i
                   receiver    a = mean q + e;  m = C(a);  e = a - m;  all take m and x -= lr m / (sqrt v + eps)

Tang et al. 2021. With v fixed the step is linear in m, so error feedback works as it does for SGD; it would not
for Adam itself. The first rounds are 15 to 25 % of all.

A coordinate without a gradient so far, such as the weight of a pixel that is always black, has v = 0, and one bit
cannot say 0: scale / eps is then added to x in each round, until it is infinite. `Frozen` leaves such coordinates
where they are, out of the messages' scales too, and takes no v for less than a thousandth of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Self

import torch
from torch import Tensor

from compressors.codec import Codec
from compressors.ef14 import Ef14

FLOOR = 1e-3  # of the mean of v where it is not zero


def adam_moments(m: Tensor, v: Tensor, g: Tensor, *, beta1: float, beta2: float) -> None:
    """A dense round's moments, in place: [d] each, g the mean of the gradients. Without bias correction."""
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What stays as it is from the last dense round on, the same at both ends."""

    places: Tensor  # [k] int64, increasing: the coordinates that ever had a gradient; only these travel
    root: Tensor  # [k] sqrt of v there

    @classmethod
    def of(cls, v: Tensor) -> Self:
        """v [d] is the second moment of the dense rounds, not negative. Raises `ValueError` if it is not finite."""
        if not bool(torch.isfinite(v).all()) or bool((v < 0).any()):
            raise ValueError("the second moment is negative or not finite")
        places = torch.nonzero(v).flatten()
        alive = v[places]
        if alive.numel():
            alive = alive.clamp(min=FLOOR * float(alive.double().mean()))
        return cls(places=places, root=alive.sqrt())

    def step(self, x: Tensor, m: Tensor, *, lr: float, epsilon: float) -> None:
        """x [d] -= lr m / (root + epsilon) in place, m [k]."""
        x.index_add_(0, self.places, m / (self.root + epsilon), alpha=-lr)


def send(codec: Codec, m: Tensor, g: Tensor, error: Tensor, *, beta1: float, seed: int) -> bytes:
    """A sender's body, from the momentum that all hold, its own gradient and its own error: [k], error in place."""
    moved = torch.mul(m, beta1).add_(g, alpha=1 - beta1)
    return Ef14().encode(codec, moved, {"residual": error}, seed)


def reply(codec: Codec, mean: Tensor, error: Tensor, *, seed: int) -> bytes:
    """The receiver's body: the new momentum is what it decodes to. `mean` [k] of what was decoded, error in place."""
    return Ef14().encode(codec, mean, {"residual": error}, seed)


def one_bit(c: Tensor) -> Tensor:
    """sign(c) |c| / sqrt(k) with sign(0) = 1: the published C, one scale for a tensor; it keeps the length."""
    scale = float(c.double().norm()) / sqrt(max(1, c.numel()))
    return torch.where(c < 0, -scale, scale)
