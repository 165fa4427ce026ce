"""The first pass: what a pipeline has to know of the columns before it can decide.

    survey = Survey(pipeline, n, size)
    for start, X in chunks: survey.add(start, X)          # X [n + kept, c], the columns from `start` on
    plan = survey.plan()

Column shards that several processes hold give the same to the last bit: each process measures its own chunks,
and the parts are added up in the order of the columns, as one process alone does it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aggregators import kernels
from aggregators.core.gram import Gram
from aggregators.core.options import check_seed
from aggregators.core.pipeline import Pipeline
from aggregators.core.plan import Plan


class Survey:
    """Inner products of n updates, and of `kept` vectors behind them, over `size` coordinates in all.

    `seed` is any integer; `RuleError` if it is none.
    """

    def __init__(self, pipeline: Pipeline, n: int, size: int, *, kept: int = 0, seed: int = 0) -> None:
        self._pipeline = pipeline
        self._n = n
        self._kept = kept
        self._seed = check_seed(seed)
        self._sum: Tensor | None = None
        self._drawn = _draws(pipeline, size, self._seed)

    @property
    def needed(self) -> bool:
        """Whether `plan` needs the columns at all."""
        return self._pipeline.needs_survey

    def measure(self, start: int, X: Tensor) -> Tensor:
        """What a chunk adds: [1 + draws, n + kept, n + kept] float64, on the CPU."""
        rows = self._n + self._kept
        part = torch.zeros(1 + len(self._drawn), rows, rows, dtype=torch.float64)
        if self._pipeline.needs_gram:
            gram = Gram(rows)
            gram.add(X)
            part[0] = gram.matrix
        here = [self._here(drawn, start, start + X.shape[1]) for drawn in self._drawn]
        if any(len(places) for places in here):
            columns = _columns(X[: self._n], torch.cat(here) - start)
            for product, own in zip(
                part[1:], torch.split(columns, [len(places) for places in here], dim=1), strict=True
            ):
                product[: self._n, : self._n] = kernels.gram(own)
        return part

    @staticmethod
    def _here(drawn: Tensor, start: int, stop: int) -> Tensor:
        first, last = np.searchsorted(drawn.numpy(), [start, stop])
        return drawn[int(first) : int(last)]

    def fold(self, part: Tensor) -> None:
        """Adds a part that `measure` made, here or elsewhere; in the order of the columns."""
        self._sum = part.clone() if self._sum is None else self._sum.add_(part)

    def add(self, start: int, X: Tensor) -> None:
        """Takes the columns of `X` [n + kept, c] in, the first of which is coordinate `start`."""
        self.fold(self.measure(start, X))

    def plan(self, *, weights: Tensor | None = None, trusted: int | None = None) -> Plan:
        """Decides; see `Pipeline.plan`."""
        if self._sum is None and self.needed:
            raise ValueError("no column has been surveyed")
        return self._pipeline.plan(
            self._n,
            None if self._sum is None else self._sum[0],
            samples=None if self._sum is None else self._sum[1:, : self._n, : self._n],
            weights=weights,
            kept=self._kept,
            trusted=trusted,
            seed=self._seed,
        )


def _columns(X: Tensor, chosen: Tensor) -> Tensor:
    if X.device.type != "cpu":
        return X.index_select(1, chosen.to(X.device))
    columns = torch.empty(len(X), len(chosen), dtype=X.dtype)
    places = chosen.numpy()
    # Row by row, since numpy copies a matrix whose rows are apart before it takes anything of it.
    for row, into in zip(X.numpy(), columns.numpy(), strict=True):
        np.take(row, places, out=into, mode="clip")  # "raise" would fill a buffer first
    return columns


def _draws(pipeline: Pipeline, size: int, seed: int) -> list[Tensor]:
    """The coordinates of each draw, ascending; the same wherever the seed is the same."""
    sampling = pipeline.rule.sampling
    if sampling is None:
        return []
    count = min(sampling.coordinates, size)
    return [_draw(seed, draw, size, count) for draw in range(sampling.draws)]


def _draw(seed: int, draw: int, size: int, count: int) -> Tensor:
    """`count` of `size` without replacement: the first so many different ones of a counter-based generator, whose
    raw numbers are the same in every version of numpy."""
    if count == size:
        return torch.arange(size)
    key = np.array(
        [seed % 2**64, draw], dtype=np.uint64
    )  # of a list, numpy would round a large seed to a float
    made = count + count // 16 + 64  # some come twice
    while True:
        drawn = np.random.Philox(key=key).random_raw(made) % np.uint64(size)
        found, first = np.unique(drawn, return_index=True)
        if len(found) >= count:
            last = np.partition(first, count - 1)[count - 1]
            return torch.from_numpy(found[first <= last].astype(np.int64))  # they are in order
        made *= 2
