"""Minimum-diameter averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.core.subsets import SubsetRule, first_least, variances

_AT_ONCE = 1 << 17  # subsets


@dataclass(frozen=True, kw_only=True)
class Mda(SubsetRule):
    """Minimum-diameter averaging: the mean of the n - f updates that stand closest together.

    z = the mean of the n - f rows whose greatest distance from each other is least.

    Often several subsets have the same two rows farthest apart; of those it is the one of least variance, and
    then the one with the lowest rows. Bound: n > 2f, n <= 64 and C(n, f) <= 2,000,000, where
    kappa = 8 f^2/(n - f): two such subsets share a row, so their means are 2f/(n - f) diameters apart at most.
    Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "mda", pre=(), faults=1).vector
    tensor([1.0000, 1.9750])
    """

    name: ClassVar[str] = "mda"
    source: ClassVar[str] = "El Mhamdi et al., Genuinely distributed Byzantine machine learning, PODC 2020"
    measure: ClassVar[str] = "diameter"

    def best(self, between: Tensor, out: Tensor) -> tuple[int, float]:
        tied, widest = least_diameter(between, out)
        return int(tied[first_least(variances(between, out, tied))]), widest

    def _told(self, least: float, scale: float) -> str:
        return f"{least**0.5 * scale:.4g}"


def least_diameter(between: Tensor, out: Tensor) -> tuple[Tensor, float]:
    """The rows of `out` [subsets, k] that leave the least greatest entry of `between`, and that entry.

    Pairs are cut from the greatest down: a subset lives on while it leaves out a row of each pair so far. The
    last to live have the least diameter, and those of any other subset are never computed.
    """
    m = len(between)
    first, second = torch.triu_indices(m, m, 1).unbind()
    lengths, order = between[first, second].sort(descending=True)
    alive = tied = torch.arange(len(out), dtype=torch.int32)
    level = torch.inf
    for pair, length in zip(order.tolist(), lengths.tolist(), strict=True):
        if length < level:
            tied, level = alive, length
        if level == float(lengths[-1]):  # as of identical rows: no pair that follows is any closer
            return tied, level
        ends = (int(first[pair]), int(second[pair]))
        alive = torch.cat(
            [_without(out, alive[at : at + _AT_ONCE], ends) for at in range(0, len(alive), _AT_ONCE)]
        )
        if len(alive) == 0:
            return tied, level
    return alive, 0.0  # one row is kept, which has no other to be apart from


def _without(out: Tensor, among: Tensor, ends: tuple[int, int]) -> Tensor:
    """Those of the subsets `among` that leave out one of two rows."""
    rows = out[among]
    return among[((rows == ends[0]) | (rows == ends[1])).any(dim=1)]
