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

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "median", pre=(), faults=1).vector
    tensor([1.0000, 1.9000])
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
