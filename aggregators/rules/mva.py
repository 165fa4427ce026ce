"""Minimum-variance averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aggregators.core.subsets import SubsetRule, first_least, variances


@dataclass(frozen=True, kw_only=True)
class Mva(SubsetRule):
    """Minimum-variance averaging: the mean of the n - f updates that vary least.

    z = the mean of the n - f rows whose mean squared distance to their mean is least.

    Bound: n > 2f, n <= 64 and C(n, f) <= 2,000,000, where kappa = 4f/(n - 2f): the mean of the rows that two
    such subsets share is no farther from the mean of either than the square root of its variance times
    f/(n - 2f). Ties go to the lowest rows. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "mva", pre=(), faults=1).vector
    tensor([1.0000, 1.9750])
    """

    name: ClassVar[str] = "mva"
    source: ClassVar[str] = (
        "Rousseeuw, Least median of squares regression, JASA 79(388), 1984 (least trimmed)"
    )
    measure: ClassVar[str] = "variance"

    def best(self, between: Tensor, out: Tensor) -> tuple[int, float]:
        values = variances(between, out)
        choice = first_least(values)
        return choice, float(values[choice])
