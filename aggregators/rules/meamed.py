"""The mean of the values around each coordinate's median, and around its trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.order_statistics import NearestMean
from aggregators.core.rule import Geometry, Mix, Needs, Rule


@dataclass(frozen=True, kw_only=True)
class Meamed(Rule):
    """The mean of the values around each coordinate's median.

    z_k = the mean of the n - f of x_1k ... x_nk that are nearest to their median.

    Of two values equally far from it the lesser is kept. Bound: n > 2f. Cost: one pass.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "meamed", pre=(), faults=1).vector
    tensor([1.0000, 1.9750])
    """

    name: ClassVar[str] = "meamed"
    source: ClassVar[str] = (
        "Xie, Koyejo and Gupta, Generalized Byzantine-tolerant SGD, 2018 (mean around median)"
    )
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.NOTHING
    counts_faults: ClassVar[bool] = True
    score: ClassVar[str] = "none: it judges coordinates, not updates"

    def mix(self, geometry: Geometry) -> Mix:
        n = geometry.n
        return self._nearest(n, (n - 1) // 2, n // 2 + 1, "median")

    def _nearest(self, n: int, low: int, high: int, centre: str) -> Mix:
        keep = n - self.faults
        return Mix(
            reducer=NearestMean(n, keep, low, high),
            scores=torch.zeros(n, dtype=torch.float64),
            treatment=(f"counts in each coordinate where it is among the {keep} nearest to the {centre}",)
            * n,
            reason=f"mean of the {keep} values of {n} nearest to each coordinate's {centre}",
        )


@dataclass(frozen=True, kw_only=True)
class Phocas(Meamed):
    """The mean of the values around each coordinate's trimmed mean.

    z_k = the mean of the n - f of x_1k ... x_nk that are nearest to their trimmed mean.

    The trimmed mean is that without the f least and f greatest; of two values equally far from it the lesser
    is kept. Bound: n > 2f. Cost: one pass.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "phocas", pre=(), faults=1).vector
    tensor([1.0000, 1.9750])
    """

    name: ClassVar[str] = "phocas"
    source: ClassVar[str] = "Xie, Koyejo and Gupta, Phocas: dimensional Byzantine-resilient SGD, 2018"

    def mix(self, geometry: Geometry) -> Mix:
        return self._nearest(geometry.n, self.faults, geometry.n - self.faults, "trimmed mean")
