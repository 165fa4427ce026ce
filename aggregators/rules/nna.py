"""Nearest-neighbour averaging: a peer's own update and those nearest to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule


@dataclass(frozen=True, kw_only=True)
class Nna(Rule):
    """Nearest-neighbour averaging: the mean of a trusted update and those nearest to it.

    z = the mean of the n - f rows nearest to the trusted row, itself the first of them.

    In gossip the trusted row is a peer's own update; under a coordinator it is that of aggregation.trusted_peer.
    MoNNA is this rule on momenta.
    Ties go to the lowest rows. Bound: n > 2f here; its convergence is proven for n >= 11f. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "nna", pre=(), faults=1, trusted=0).vector
    tensor([1.0000, 1.9750])
    """

    name: ClassVar[str] = "nna"
    source: ClassVar[str] = (
        "Farhadkhani et al., Robust collaborative learning with linear gradient overhead, ICML 2023"
    )
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.GRAM | Needs.TRUSTED
    counts_faults: ClassVar[bool] = True
    score: ClassVar[str] = "distance to the trusted update"

    def mix(self, geometry: Geometry) -> Mix:
        if geometry.trusted is None:
            raise RuntimeError("this geometry was made without a trusted row: declare Needs.TRUSTED")
        n, taken, pivot = geometry.n, geometry.n - self.faults, geometry.trusted
        away = geometry.distances[pivot].clone()
        scores = away.sqrt()
        away[pivot] = -1.0  # itself first, whatever stands upon it
        matrix = torch.zeros(1, n, dtype=torch.float64)
        matrix[0, away.sort(stable=True).indices[:taken]] = 1 / taken
        treatment = [
            f"{'taken' if share else 'left out'}, at a distance of {score:.4g} from the trusted update"
            for share, score in zip(matrix[0].tolist(), scores.tolist(), strict=True)
        ]
        treatment[pivot] = "taken, as the trusted update"
        return Mix(
            matrix=matrix,
            scores=scores,
            treatment=tuple(treatment),
            reason=f"mean of the {counted(taken, 'update')} of {n} nearest to the trusted one",
        )
