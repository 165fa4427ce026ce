"""A little is enough: within the spread of the honest, at its edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack
from aggregators.options import check_number


@dataclass(frozen=True, kw_only=True)
class Alie(Attack):
    """mu + z sigma in each coordinate, with the mean and the standard deviation (of h - 1) of the updates
    seen.

    A greater |z| does more harm and is easier to tell; z may be negative.
    """

    name: ClassVar[str] = "alie"
    source: ClassVar[str] = "Baruch et al., A little is enough, NeurIPS 2019"
    seen_min: ClassVar[int] = 2  # one update has no spread

    z: float = 1.5

    def __post_init__(self) -> None:
        check_number(self.name, "z", self.z)

    def _forge(self, honest: Tensor, out: Tensor) -> None:
        torch.std(honest, dim=0, correction=1, out=out)
        out.mul_(self.z).add_(honest.mean(dim=0))
