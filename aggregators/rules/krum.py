"""Krum and Multi-Krum: the updates that stand closest to their neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.core.options import check_integer, counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule


@dataclass(frozen=True, kw_only=True)
class Krum(Rule):
    """The one update that stands closest to its neighbours.

    z = the x_i with the least score s_i, the sum of its n - f - 2 least squared distances to other rows.

    Some libraries count n - f - 1 neighbours; this is the number of the paper.
    Bound: n > 2f + 2. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "krum", pre=(), faults=1).vector
    tensor([1.0000, 1.9000])
    """

    name: ClassVar[str] = "krum"
    source: ClassVar[str] = "Blanchard et al., Machine learning with adversaries, NeurIPS 2017"
    breakdown: ClassVar[str] = "n > 2f + 2"
    needs: ClassVar[Needs] = Needs.GRAM
    counts_faults: ClassVar[bool] = True
    score: ClassVar[str] = "sum of the squared distances to its n - f - 2 nearest: low is close to the others"

    def refuse(self, n: int) -> str | None:
        if n > 2 * self.faults + 2:
            return None
        return f"{self.name} needs n > 2f + 2: n is {n}, f is {self.faults}"

    def mix(self, geometry: Geometry) -> Mix:
        return self._take(geometry, 1)

    def _take(self, geometry: Geometry, count: int) -> Mix:
        n = geometry.n
        scores = krum_scores(geometry, self.faults)
        ranked = torch.sort(scores, stable=True).indices
        matrix = torch.zeros(1, n, dtype=torch.float64)
        matrix[0, ranked[:count]] = 1 / count
        rank_of = torch.empty(n, dtype=torch.long)
        rank_of[ranked] = torch.arange(1, n + 1)
        values = scores.tolist()
        treatment = tuple(
            f"{'taken' if rank <= count else 'left out'}: its score {score:.4g} is number {rank} of {n}"
            for score, rank in zip(values, rank_of.tolist(), strict=True)
        )
        what = "the one update" if count == 1 else f"mean of the {counted(count, 'update')}"
        least = "least score" if count == 1 else "least scores"
        return Mix(
            matrix=matrix, scores=scores, treatment=treatment, reason=f"{what} of {n} with the {least}"
        )


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Krum):
    """The mean of the updates that stand closest to their neighbours.

    z = the mean of the m rows of least score s_i, Krum's: the sum of the n - f - 2 least squared distances to other
    rows; m = n - f unless set. Bound: n > 2f + 2 and m <= n - f. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "multi-krum", pre=(), faults=1).vector
    tensor([1.0000, 1.9750])
    """

    name: ClassVar[str] = "multi-krum"
    breakdown: ClassVar[str] = "n > 2f + 2 and m <= n - f"

    knobs: ClassVar[Mapping[str, str]] = {
        "m": (
            "updates averaged, from 1 to n - f; None is n - f. More average more noise away and "
            "let more of the far ones in"
        ),
    }

    m: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m is not None:
            check_integer(self.name, "m", self.m, minimum=1)

    def refuse(self, n: int) -> str | None:
        if self.m is not None and self.m > n - self.faults:
            return f"{self.name} needs m <= n - f: m is {self.m}, n is {n}, f is {self.faults}"
        return super().refuse(n)

    def mix(self, geometry: Geometry) -> Mix:
        return self._take(geometry, geometry.n - self.faults if self.m is None else self.m)


def krum_scores(geometry: Geometry, faults: int) -> Tensor:
    """[n] float64; infinite for a row that is not finite, which is the last choice of neighbour for any other."""
    ascending = geometry.distances.sort(dim=1).values  # each row's own zero comes first
    return ascending[:, 1 : geometry.n - faults - 1].sum(dim=1)
