"""Inner product manipulation, also called fall of empires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack
from aggregators.options import check_number


@dataclass(frozen=True, kw_only=True)
class Ipm(Attack):
    """-epsilon * mu, with mu the mean of the updates seen: small enough to pass for honest, yet against the
    descent.

    Raising epsilon turns the aggregate sooner and is easier to tell; 0.1 stays within most honest spreads.
    """

    name: ClassVar[str] = "ipm"
    source: ClassVar[str] = "Xie et al., Fall of empires, UAI 2019"

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.name, "epsilon", self.epsilon, positive=True)

    def _forge(self, honest: Tensor, out: Tensor) -> None:
        torch.mean(honest, dim=0, out=out)
        out.mul_(-self.epsilon)
