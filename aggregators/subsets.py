"""What the rules share that look for the best of all subsets of n - f rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from aggregators.distances import scaled_distances
from aggregators.options import counted
from aggregators.rule import Geometry, Mix, Needs, Rule

SUBSETS_MAX = 2_000_000
ROWS_MAX = 64
_VALUES = 1 << 20  # of a table of subsets at a time: 8 MiB of float64
_SAME = 1e-12  # values closer than this, as a share of themselves, differ by rounding only


@dataclass(frozen=True, kw_only=True)
class SubsetRule(Rule):
    """z = the mean of the n - f rows for which a measure is least, by trying all C(n, f) subsets.

    A row without a finite norm is in no subset. Bound: n > 2f, n <= 64 and C(n, f) <= 2,000,000.
    """

    breakdown: ClassVar[str] = "n > 2f, with n <= 64 and C(n, f) <= 2,000,000"
    needs: ClassVar[Needs] = Needs.GRAM
    score: ClassVar[str] = "distance to the result"
    measure: ClassVar[str]  # what is least

    def refuse(self, n: int) -> str | None:
        if n > ROWS_MAX:
            return f"{self.name} tries subsets of {ROWS_MAX} updates at most, and n is {n}"
        if n > 2 * self.faults and (subsets := comb(n, self.faults)) > SUBSETS_MAX:
            return (
                f"{self.name} tries all subsets of n - f updates, {SUBSETS_MAX:,} at most: "
                f"n is {n}, f is {self.faults}, and there are {subsets:,}"
            )
        return super().refuse(n)

    @abstractmethod
    def best(self, between: Tensor, out: Tensor) -> tuple[int, float]:
        """Which row of `out` [subsets, k] int64 is best to leave out of m rows, and the measure without it.

        `between` [m, m] float64 are their squared distances, none above 4. Ties go to the first of `out`.
        """

    def mix(self, geometry: Geometry) -> Mix:
        n, taken = geometry.n, geometry.n - self.faults
        present = geometry.finite.nonzero().flatten()
        between, scale = scaled_distances(geometry)
        out = left_out(len(present), len(present) - taken)
        choice, least = self.best(between[present][:, present], out)
        kept = present[_kept(out[choice], len(present))]
        matrix = torch.zeros(1, n, dtype=torch.float64)
        matrix[0, kept] = 1 / taken
        near = between[:, kept]
        squares = near.mean(dim=1) - near[kept].sum() / (2 * taken**2)
        scores = (squares.clamp(min=0).sqrt() * scale).masked_fill(~geometry.finite, torch.inf)
        treatment = tuple(
            f"{'taken' if share else 'left out'}, at a distance of {score:.4g} from the result"
            for share, score in zip(matrix[0].tolist(), scores.tolist(), strict=True)
        )
        told = f"{self.measure}, {self._told(least, scale)}"
        reason = f"mean of the {counted(taken, 'update')} of {n} with the least {told}"
        return Mix(matrix=matrix, scores=scores, treatment=treatment, reason=reason)

    def _told(self, least: float, scale: float) -> str:
        return f"{least * scale**2:.4g}"


def left_out(n: int, k: int) -> Tensor:
    """[C(n, k), k] int64: all ways to leave k of n rows out, the one that keeps the lowest rows first."""
    if k == 0:
        return torch.zeros(1, 0, dtype=torch.long)
    # By numpy: torch wakes all its threads to repeat ten numbers, which takes milliseconds on a busy machine.
    chosen = np.arange(n - k + 1)[:, None]
    for place in range(1, k):
        last = chosen[:, -1]
        ways = n - k + place - last
        following = np.arange(ways.sum()) + np.repeat(last + 1 - (ways.cumsum() - ways), ways)
        chosen = np.column_stack([np.repeat(chosen, ways, axis=0), following])
    return torch.from_numpy(chosen[::-1].copy())


def masks(out: Tensor, m: int) -> Iterator[tuple[int, Tensor]]:
    """Tables [c, m] float64, 1 for a row that is kept and 0 for one in `out`, each with its first subset."""
    step = max(1, _VALUES // m)
    for start in range(0, len(out), step):
        part = out[start : start + step]
        table = torch.ones(len(part), m, dtype=torch.float64)
        yield start, table.scatter_(1, part, 0.0)


def variances(between: Tensor, out: Tensor) -> Tensor:
    """The mean squared distance of the kept rows to their mean, for each row of `out`: no differences taken."""
    m = len(between)
    pairs = torch.cat([((table @ between) * table).sum(dim=1) for _, table in masks(out, m)])
    return pairs / (2 * (m - out.shape[1]) ** 2)


def first_least(values: Tensor) -> int:
    """The first place of a value that is the least but for rounding."""
    return int((values <= values.min() * (1 + _SAME)).nonzero()[0])


def _kept(out: Tensor, m: int) -> Tensor:
    return torch.ones(m, dtype=torch.bool).index_fill_(0, out, value=False).nonzero().flatten()
