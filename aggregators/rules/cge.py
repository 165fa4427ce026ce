"""Comparative gradient elimination: the shortest updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule


@dataclass(frozen=True, kw_only=True)
class Cge(Rule):
    """Comparative gradient elimination: the mean of the shortest updates.

    z = the mean of the n - f rows of least norm; ties go to the lowest rows.

    Nothing is asked of a row but to be short, so a short row of the opposite sign passes: it is robust only
    where honest updates are much alike. Bound: n > 2f; it has no kappa. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "cge", pre=(), faults=1).vector
    tensor([1.0000, 1.9750])
    """

    name: ClassVar[str] = "cge"
    source: ClassVar[str] = (
        "Gupta, Liu and Vaidya, Byzantine fault-tolerant distributed machine learning using "
        "norm-based comparative gradient elimination, DSN-W 2021"
    )
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.GRAM
    counts_faults: ClassVar[bool] = True
    score: ClassVar[str] = "norm"

    def mix(self, geometry: Geometry) -> Mix:
        n, taken = geometry.n, geometry.n - self.faults
        norms = geometry.norms
        shortest = norms.sort(stable=True).indices[:taken]
        matrix = torch.zeros(1, n, dtype=torch.float64)
        matrix[0, shortest] = 1 / taken
        treatment = tuple(
            f"{'taken' if share else 'left out'}: its norm is {norm:.4g}"
            for share, norm in zip(matrix[0].tolist(), norms.tolist(), strict=True)
        )
        return Mix(
            matrix=matrix,
            scores=norms,
            treatment=treatment,
            reason=f"mean of the {counted(taken, 'update')} of {n} with the least norm",
        )
