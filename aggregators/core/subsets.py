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

from aggregators.core.distances import scaled_distances
from aggregators.core.options import counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule

SUBSETS_MAX = 2_000_000
ROWS_MAX = 64
_VALUES = 1 << 18  # of a table of subsets at a time: 2 MiB of float64
_SAME = 1e-12  # values closer than this, as a share of themselves, differ by rounding only


@dataclass(frozen=True, kw_only=True)
class SubsetRule(Rule):
    """z = the mean of the n - f rows for which a measure is least, by trying all C(n, f) subsets.

    A row without a finite norm is in no subset. Bound: n > 2f, n <= 64 and C(n, f) <= 2,000,000, where the subsets
    and their measures take some 60 MB.
    """

    breakdown: ClassVar[str] = "n > 2f, with n <= 64 and C(n, f) <= 2,000,000"
    needs: ClassVar[Needs] = Needs.GRAM
    counts_faults: ClassVar[bool] = True
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
        """Which row of `out` [subsets, k] uint8 is best to leave out of m rows, and the measure without it.

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
    """[C(n, k), k] uint8: all ways to leave k of n <= 64 rows out, the one that keeps the lowest rows first."""
    # By numpy: torch wakes all its threads to repeat ten numbers, which takes milliseconds on a busy machine.
    last = np.zeros((1, 0), dtype=np.uint8)  # the ways to leave j - 1 rows out, all of them high
    for j in range(1, k + 1):
        low = k - j  # so many rows are left out below these j
        chosen = np.empty((comb(n - low, j), j), dtype=np.uint8)
        start = 0
        for first in range(n - j, low - 1, -1):
            stop = start + comb(n - 1 - first, j - 1)
            chosen[start:stop, 0] = first
            chosen[start:stop, 1:] = last[: stop - start]  # those that begin above `first`
            start = stop
        last = chosen
    return torch.from_numpy(last)


def masks(out: Tensor, m: int, among: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Tables [c, m] float64, 1 for a row that is kept and 0 for one in `out`, each with its first subset.

    `among` are the rows of `out` to take; None takes them all.
    """
    step = max(1, _VALUES // m)
    for start in range(0, len(out if among is None else among), step):
        part = out[start : start + step] if among is None else out[among[start : start + step]]
        table = torch.ones(len(part), m, dtype=torch.float64)
        yield start, table.scatter_(1, part.long(), 0.0)


def variances(between: Tensor, out: Tensor, among: Tensor | None = None) -> Tensor:
    """The mean squared distance of the kept rows to their mean, for each row of `out`, or for those `among` them.

    No differences are taken.
    """
    m = len(between)
    pairs = torch.empty(len(out if among is None else among), dtype=torch.float64)
    for start, table in masks(out, m, among):
        torch.sum((table @ between).mul_(table), dim=1, out=pairs[start : start + len(table)])
    return pairs.div_(2 * (m - out.shape[1]) ** 2)


def first_least(values: Tensor) -> int:
    """The first place of a value that is the least but for rounding."""
    return int((values <= values.min() * (1 + _SAME)).numpy().argmax())  # the first of those that hold


def _kept(out: Tensor, m: int) -> Tensor:
    return torch.ones(m, dtype=torch.bool).index_fill_(0, out.long(), value=False).nonzero().flatten()
