"""Nearest-neighbour mixing: each update becomes the mean of those nearest to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import counted
from aggregators.core.rule import Geometry, Needs, PreMix, PreRule


@dataclass(frozen=True, kw_only=True)
class Nnm(PreRule):
    """Nearest-neighbour mixing: each update becomes the mean of those nearest to it.

    y_i = the mean of the n - f rows nearest to x_i, itself the first of them.

    It gives any rule of constant kappa the optimal order f/n, also where honest rows differ much. A row of
    infinite norm is near to none: nobody mixes with it, and it becomes the mean of the n - f lowest rows that
    are finite. Bound: n > 2f.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "median", pre="nnm", faults=1).vector
    tensor([1.0000, 1.9750])
    """

    name: ClassVar[str] = "nnm"
    source: ClassVar[str] = "Allouah et al., Fixing by mixing, AISTATS 2023"
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.GRAM
    counts_faults: ClassVar[bool] = True

    def mix(self, geometry: Geometry) -> PreMix:
        n, taken = geometry.n, geometry.n - self.faults
        near = geometry.distances.clone().fill_diagonal_(-1.0)  # itself first, whatever stands upon it
        lost = (~geometry.finite).nonzero().flatten()
        near[lost, lost] = torch.inf
        # Among the infinite distances of a lost row, those to finite rows come first.
        order = torch.argsort(geometry.finite.logical_not().to(torch.int8), stable=True)
        chosen = order[near[:, order].sort(dim=1, stable=True).indices[:, :taken]]
        matrix = torch.zeros(n, n, dtype=torch.float64)
        matrix.scatter_(1, chosen, 1 / taken)
        counts = (matrix > 0).sum(dim=0).tolist()
        return PreMix(
            matrix=matrix,
            treatment=tuple(
                f"is among the {taken} nearest of {counted(count, 'update')}" for count in counts
            ),
            reason=f"nnm made of each update the mean of the {taken} nearest to it",
        )
