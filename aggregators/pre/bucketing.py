"""Bucketing: means of a few updates at random, instead of the updates themselves."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import check_integer, counted
from aggregators.core.rule import Geometry, Needs, PreMix, PreRule


@dataclass(frozen=True, kw_only=True)
class Bucketing(PreRule):
    """Means of a few updates at random, instead of the updates themselves.

    The rows, shuffled by the round's seed, in groups of s (the last may be short); each becomes its mean.

    Written "bucketing:2". It brings honest rows that differ closer together, but each faulty row spoils a
    bucket, and f stays f. A row of infinite norm is left out of its bucket; a bucket of nothing else is zero.
    Bound: 2f < ceil(n/s). Cost: none beyond the rule's.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "median", pre="bucketing", faults=1).vector
    tensor([1.2000, 1.8000])
    """

    name: ClassVar[str] = "bucketing"
    source: ClassVar[str] = (
        "Karimireddy, He and Jaggi, Byzantine-robust learning on heterogeneous data, ICLR 2022"
    )
    breakdown: ClassVar[str] = "2f < ceil(n/s)"
    needs: ClassVar[Needs] = Needs.SEED
    keeps_rows: ClassVar[bool] = False

    knobs: ClassVar[Mapping[str, str]] = {
        "s": (
            "updates in a bucket, at least 1. More bring the buckets closer together, and fewer "
            "faulty ones are borne: 2f < ceil(n/s)"
        ),
    }

    s: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self.name, "s", self.s, minimum=1)

    def rows(self, n: int) -> int:
        return math.ceil(n / self.s)

    def refuse(self, n: int) -> str | None:
        if 2 * self.faults < self.rows(n):
            return None
        return f"{self.name} needs 2f < ceil(n/s): n is {n}, s is {self.s}, f is {self.faults}"

    def mix(self, geometry: Geometry) -> PreMix:
        n, m = geometry.n, self.rows(geometry.n)
        # Python's own generator, which is the same in every version and on every machine.
        order = random.Random(f"bucketing/{geometry.seed}").sample(range(n), n)
        bucket = torch.empty(n, dtype=torch.long)
        bucket[order] = torch.arange(n) // self.s
        matrix = torch.zeros(m, n, dtype=torch.float64)
        matrix[bucket, torch.arange(n)] = geometry.finite.to(torch.float64)
        matrix /= matrix.sum(dim=1, keepdim=True).clamp(min=1.0)
        return PreMix(
            matrix=matrix,
            stands_for=bucket,
            treatment=tuple(
                f"is one of {int((bucket == number).sum())} in bucket {number + 1} of {m}"
                for number in bucket.tolist()
            ),
            reason=f"bucketing made {counted(m, 'mean')} of {counted(n, 'update')}",
        )
