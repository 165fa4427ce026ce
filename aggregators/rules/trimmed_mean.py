"""The trimmed mean of each coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import counted
from aggregators.core.order_statistics import MiddleMean
from aggregators.core.rule import Geometry, Mix, Needs, Rule


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Rule):
    """The trimmed mean of each coordinate.

    z_k = the mean of x_1k ... x_nk without the f least and the f greatest of them; with f = 0, the plain
    mean.

    Bound: n > 2f, where kappa = 6f/(n - 2f) (1 + f/(n - 2f)). Cost: one pass with a sorting network.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "trimmed-mean", pre=(), faults=1).vector
    tensor([1.0667, 1.9000])
    """

    name: ClassVar[str] = "trimmed-mean"
    source: ClassVar[str] = "Yin et al., Byzantine-robust distributed learning, ICML 2018"
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.NOTHING
    counts_faults: ClassVar[bool] = True
    score: ClassVar[str] = "none: it judges coordinates, not updates"

    def mix(self, geometry: Geometry) -> Mix:
        n, f = geometry.n, self.faults
        scores = torch.zeros(n, dtype=torch.float64)
        if f == 0:
            return Mix(
                matrix=torch.full((1, n), 1 / n, dtype=torch.float64),
                scores=scores,
                treatment=("counts in full, as f is 0",) * n,
                reason=f"mean of {counted(n, 'update')} with nothing trimmed, as f is 0",
            )
        return Mix(
            reducer=MiddleMean(n, f, n - f),
            scores=scores,
            treatment=(f"counts in each coordinate where it is not among the {f} least or greatest",) * n,
            reason=f"mean of {n} updates without the {f} least and {f} greatest values of each coordinate",
        )
