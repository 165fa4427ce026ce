"""Bulyan: a selection by repeated Krum, then the middle of each coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.core.order_statistics import NearestMean
from aggregators.core.rule import Geometry, Mix, Needs, Rule


@dataclass(frozen=True, kw_only=True)
class Bulyan(Rule):
    """A selection by repeated Krum, then the middle of each coordinate.

    theta = n - 2f rows are taken one by one, then z_k is the mean of the theta - 2f values nearest to the
    median of their coordinate k.

    The row taken is Krum's choice among the m rows left: that of the least sum of squared distances to its
    m - f - 2 nearest of them (or to the nearest, at the end). With few neighbours two rows often tie, each
    the other's nearest: then the sum with one neighbour more decides, and then the lowest row.
    Bound: n >= 4f + 3. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [900.0]])
    >>> aggregate(updates, "bulyan", pre=(), faults=1).vector
    tensor([4.])
    """

    name: ClassVar[str] = "bulyan"
    source: ClassVar[str] = (
        "El Mhamdi et al., The hidden vulnerability of distributed learning in Byzantium, ICML 2018"
    )
    breakdown: ClassVar[str] = "n >= 4f + 3"
    needs: ClassVar[Needs] = Needs.GRAM
    counts_faults: ClassVar[bool] = True
    score: ClassVar[str] = "its Krum score when it was taken, or at the end: low is close to the others"

    def refuse(self, n: int) -> str | None:
        if n >= 4 * self.faults + 3:
            return None
        return f"{self.name} needs n >= 4f + 3: n is {n}, f is {self.faults}"

    def mix(self, geometry: Geometry) -> Mix:
        n, theta = geometry.n, geometry.n - 2 * self.faults
        if self.faults == 0:
            return Mix(
                matrix=torch.full((1, n), 1 / n, dtype=torch.float64),
                scores=torch.zeros(n, dtype=torch.float64),
                treatment=("counts in full, as f is 0",) * n,
                reason=f"mean of {n} updates with none left out, as f is 0",
            )
        taken, scores = repeated_krum(geometry.distances, self.faults)
        keep = theta - 2 * self.faults
        place = {row: number for number, row in enumerate(taken, start=1)}
        treatment = tuple(
            f"taken as number {place[row]} with score {score:.4g}, counts where it is near the median"
            if row in place
            else f"left out: its score is {score:.4g} at the end"
            for row, score in enumerate(scores.tolist())
        )
        matrix = torch.zeros(theta, n, dtype=torch.float64)
        matrix[torch.arange(theta), torch.tensor(sorted(taken))] = 1.0
        return Mix(
            matrix=matrix,
            reducer=NearestMean(theta, keep, (theta - 1) // 2, theta // 2 + 1),
            scores=scores,
            treatment=treatment,
            reason=f"mean of the {keep} values nearest to each coordinate's median, of {theta} updates of {n}",
        )


def repeated_krum(between: Tensor, faults: int) -> tuple[list[int], Tensor]:
    """The n - 2f rows in the order in which they are taken, and the scores [n]; `faults` is above zero.

    A row at infinite distances has an infinite score, and at most f of them are never taken.
    """
    n = len(between)
    left = torch.arange(n)
    near = between.clone().fill_diagonal_(-1.0).sort(dim=1)
    values, others = near.values[:, 1:], near.indices[:, 1:]  # each row itself came first
    scores = torch.empty(n, dtype=torch.float64)
    taken: list[int] = []
    while True:
        m = len(left)
        neighbours = max(1, m - faults - 2)
        least = values[:, :neighbours].sum(dim=1)
        scores[left] = least
        if m == 2 * faults:
            return taken, scores
        tied = (least == least.min()).nonzero().flatten()
        winner = int(tied[(least[tied] + values[tied, neighbours]).argmin()])
        row = int(left[winner])
        taken.append(row)
        rest = torch.arange(m) != winner
        left, values, others = left[rest], values[rest], others[rest]
        kept = others != row
        values, others = values[kept].view(m - 1, m - 2), others[kept].view(m - 1, m - 2)
