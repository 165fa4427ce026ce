"""The opposite of what the honest send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack
from aggregators.options import check_number


@dataclass(frozen=True, kw_only=True)
class SignFlip(Attack):
    """-scale * mu, with mu the mean of the updates seen.

    The scale is 1 unless set; with 10, one such peer in five turns a mean backwards.
    """

    name: ClassVar[str] = "sign-flip"
    source: ClassVar[str] = (
        "Allen-Zhu et al., Byzantine-resilient non-convex stochastic gradient descent, ICLR 2021"
    )

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.name, "scale", self.scale, positive=True)

    def _forge(self, honest: Tensor, out: Tensor) -> None:
        torch.mean(honest, dim=0, out=out)
        out.mul_(-self.scale)
