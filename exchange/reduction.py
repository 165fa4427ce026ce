"""The second sweep: what a plan makes of decoded updates, column by column.

delta      [c] of the parameters: the plan's mixture, opened by the run's mechanism
buffers    [c], the new values, of the mixture and of what the base and the updates span, see `exchange.untrained`
counters   [c], the new values, by order
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import aggregators
from aggregators.kernels import Mixing, mix
from exchange import recipe, untrained
from exchange.decoded import Decoded
from exchange.mechanisms import Opening
from exchange.recipe import AggregationRefused
from muster.model.layout import BUFFERS, CHUNK_COORDINATES, COUNTERS, Column
from muster.model.modelfile import ModelFile
from muster.spec.model import RunSpec

Watch = Callable[[int, Tensor], None]
"""Is shown each stretch in order: its first coordinate, and the decoded rows [n + kept, c]."""


class Reduction:
    """Of updates whose mixture moves the model `base`. `watch` sees all decoded rows, for what is kept of them."""

    def __init__(
        self,
        spec: RunSpec,
        base: ModelFile,
        source: Decoded,
        plan: aggregators.Plan,
        *,
        cohort: int,
        opening: Opening,
        watch: Watch | None = None,
    ) -> None:
        self._base, self._source, self._plan, self._watch = base, source, plan, watch
        self._opening = opening
        self._faults = spec.faults_of(cohort)
        self._measures = recipe.pipeline(spec, cohort).rule.has_length
        self._sum = _Sum(source, plan) if plan.linear and not source.kept and watch is None else None
        width = min(CHUNK_COORDINATES, base.layout.columns_size)
        self._delta, self._moved = torch.empty(width), torch.empty(width)

    def params(self, column: Column) -> Tensor:
        """What is made of the column [c]; the same memory every time. Raises `AggregationRefused`."""
        delta = self._delta[: column.stop - column.start]
        self._mix(column, delta)
        self._opening.open(delta, column.index, column.start, self._base.layout.size)
        return delta

    def _mix(self, column: Column, delta: Tensor) -> None:
        if self._sum is not None and not self._source.holds(column):
            self._sum.read(column, delta)
            return
        for at, X in self._source.stretches(column):
            self._plan.reduce(X, delta[at : at + X.shape[1]])
            if self._watch is not None:
                self._watch(column.start + at, X)

    def buffers(self, column: Column) -> Tensor:
        """The new values [c]; the same memory every time. Raises `AggregationRefused` if they are not finite."""
        out = self._moved[: column.stop - column.start]
        first = column.start - self._base.layout.size
        chunk = untrained.Chunk(self._base.layout.groups[BUFFERS], column.index, self._faults)
        for at, X in self._source.stretches(column):
            width = X.shape[1]
            updates = X[: len(self._source.readers)]
            base, delta = self._base.buffers[first + at : first + at + width], self._delta[:width]
            if self._measures:
                self._plan.reduce(X, delta)
            else:  # a statistic does not move by a unit in a direction
                delta.copy_(updates.median(0).values)
            new = out[at : at + width]
            untrained.move_buffers(chunk.stretch(at, width), base, updates, delta, new)
            if bool((~new.isfinite() & base.isfinite()).any()):
                raise AggregationRefused("the aggregate gives buffers that are not finite")
            if self._watch is not None:
                self._watch(column.start + at, X)
        return out

    def counters(self, index: int) -> Tensor:
        """The new values [c] int64 of a chunk."""
        chunk = untrained.Chunk(self._base.layout.groups[COUNTERS], index, self._faults)
        parts = [
            untrained.move_counters(chunk.stretch(at, values.shape[1]), values)
            for at, values in self._source.counters(index)
        ]
        return torch.cat(parts)


class _Sum:
    """A weighted sum of whole updates, folded a few of them at a time, in their order.

    What does not fit at once is added to the sum so far, by the same multiply-add: the same values, but for the sign of
    a zero.
    """

    def __init__(self, source: Decoded, plan: aggregators.Plan) -> None:
        self._source = source
        used = plan.weights.nonzero().flatten().tolist()
        shares = plan.weights.tolist()
        most = source.rows_max
        self._rounds = [
            (used[:most], Mixing(torch.tensor([[shares[i] for i in used[:most]]], dtype=torch.float64)))
        ]
        step = max(1, most - 1)
        for first in range(most, len(used), step):
            part = used[first : first + step]
            weights = torch.tensor([[1.0, *(shares[i] for i in part)]], dtype=torch.float64)
            self._rounds.append((part, Mixing(weights)))
        rows = max(len(part) + (number > 0) for number, (part, _) in enumerate(self._rounds))
        self._room = torch.empty(rows * min(CHUNK_COORDINATES, source.layout.columns_size))

    def read(self, column: Column, out: Tensor) -> None:
        """Fills out [c]."""
        for number, (part, mixing) in enumerate(self._rounds):
            before = int(number > 0)
            X = self._room[: (before + len(part)) * len(out)].view(-1, len(out))
            if before:
                X[0] = out
            self._source.rows(column, part, X[before:])
            if part:
                mix(X, out.unsqueeze(0), mixing)
            elif not number:
                out.zero_()
