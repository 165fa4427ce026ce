"""The median of each coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import counted
from aggregators.core.order_statistics import MiddleMean
from aggregators.core.rule import Geometry, Mix, Needs, Rule


@dataclass(frozen=True, kw_only=True)
class Median(Rule):
    """The median of each coordinate.

    z_k = the median of x_1k ... x_nk; of an even n, the mean of the two middle values.

    Bound: n > 2f, where kappa = 4 (1 + f/(n - 2f))^2. Cost: one pass with a sorting network.
    """

    name: ClassVar[str] = "median"
    source: ClassVar[str] = "Yin et al., Byzantine-robust distributed learning, ICML 2018"
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.NOTHING
    score: ClassVar[str] = "none: it judges coordinates, not updates"

    def mix(self, geometry: Geometry) -> Mix:
        n = geometry.n
        return Mix(
            reducer=MiddleMean(n, (n - 1) // 2, n // 2 + 1),
            scores=torch.zeros(n, dtype=torch.float64),
            treatment=("votes in the median of each coordinate",) * n,
            reason=f"median of {counted(n, 'update')} in each coordinate",
        )
