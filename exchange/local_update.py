"""What an update is made of, chunk by chunk: what training changed, clipped, the momentum of it, and the run's state
arrays.

Several threads may ask for chunks at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exchange.statefile import ScatteredStateWriter, StateReader
from muster.model.finite import all_finite
from muster.model.layout import BUFFERS, COUNTERS, Column
from muster.model.modelfile import ModelFile, read_state
from muster.runtime.inorder import in_order

MOMENTUM = "momentum"


def momenta_names(count: int) -> list[str]:
    return [MOMENTUM, *(f"{MOMENTUM}-{number}" for number in range(1, count))]


class _Room(threading.local):
    """Memory used again and again, each thread's own."""

    def __init__(self) -> None:
        self._held = torch.empty(0, dtype=torch.float32)

    def of(self, size: int) -> Tensor:
        if len(self._held) < size:
            self._held = torch.empty(size, dtype=torch.float32)
        return self._held[:size]


class Deltas:
    """What training changed: the model less the base as it really held it, in columns (`ParameterLayout.columns`).

    Equal infinities, and NaN where the base has NaN, are no change. A buffer that was not finite and now is has no
    difference, and is told as its value: the least normal number stands for zero there, which means no change.
    """

    def __init__(self, model: nn.Module, base: ModelFile) -> None:
        self.trained = read_state(model, base.layout)
        self._base = base
        self._room = _Room()

    def read(self, column: Column, out: Tensor) -> None:
        self.trained.read(column.index, out, column.group)
        rounded = self._room.of(len(out))
        self._base.read_native(column.index, rounded, column.group)
        if all_finite(rounded):
            out -= rounded
            return
        odd = ~rounded.isfinite()
        same = odd & ((out == rounded) | (out.isnan() & rounded.isnan()))
        new = out[odd].where(out[odd] != 0, torch.finfo(torch.float32).smallest_normal)
        out -= rounded
        if column.group == BUFFERS:
            out[odd] = new
        out[same] = 0.0


class LocalUpdate:
    """The honest update of this sender and, of an attack simulation, of its further views, chunk by chunk: an
    `aggregators.Source`."""

    def __init__(
        self, model: nn.Module, base: ModelFile, views: Sequence[Path], state: StateFiles, beta: float
    ) -> None:
        self.n = 1 + len(views)
        self.size = base.layout.columns_size
        self._layout = base.layout
        self._deltas = Deltas(model, base)
        self._views = [StateReader(path, self.size) for path in views]
        self._state = state
        self._beta = beta
        self._scales = [1.0] * self.n
        self._room = _Room()

    def clip(self, norm_max: float) -> None:
        """Scales each update's parameters [d], before any momentum, so that their norm is at most this. One that is not
        finite stays as it is, for who encodes it to tell."""
        if norm_max == math.inf:
            return
        # Parameters come first among the columns.
        squares = zip(*in_order(self._squares, self._layout.chunk_count), strict=True)
        # The exact sum: the same whatever the threads did, and so is an update that is made a second time.
        norms = [math.sqrt(math.fsum(parts)) for parts in squares]
        self._scales = [norm_max / norm if norm_max < norm < math.inf else 1.0 for norm in norms]

    def _squares(self, index: int) -> list[float]:
        """Of each update's part of a chunk the squared norm: by numpy, which sums in one order on one thread."""
        rows = self._trained(self._layout.columns[index]).numpy()
        with np.errstate(invalid="ignore"):  # signalling NaN
            return [float(np.square(row, dtype=np.float64).sum()) for row in rows]

    def chunk(self, index: int) -> Tensor:
        """[n, c] of a column; of parameters clipped, with the momentum folded in. The same memory every time that a
        thread asks."""
        column = self._layout.columns[index]
        rows = self._trained(column)
        if column.group == BUFFERS:  # statistics have no momentum and no learning rate
            return rows
        start, stop = column.start, column.stop
        for row, scale in zip(rows, self._scales, strict=True):
            if scale != 1:
                row.mul_(scale)
        if self._beta:
            for row, name in zip(rows, momenta_names(self.n), strict=True):
                if not self._state.fresh(name):
                    row.mul_(1.0 - self._beta).add_(self._state.read(name, start, stop), alpha=self._beta)
        return rows

    def _trained(self, column: Column) -> Tensor:
        """[n, c], what training changed; the same memory every time that a thread asks."""
        rows = self._room.of(self.n * (column.stop - column.start)).view(self.n, -1)
        self._deltas.read(column, rows[0])
        for row, view in zip(rows[1:], self._views, strict=True):
            row.copy_(view.read(column.start, column.stop))
        return rows

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for index, column in enumerate(self._layout.columns):
            yield column.start, self.chunk(index)

    def counters(self) -> Iterator[Tensor]:
        """Their values after training, by chunks, int64 [c]."""
        return self._deltas.trained.chunks(COUNTERS)

    def close(self) -> None:
        for view in self._views:
            view.close()


class StateFiles:
    """The sender's state arrays of the run: the `present` files to read, and a new file for each of `names`, whose
    paths begin with `staged`. `stack` closes them."""

    def __init__(
        self, names: list[str], present: Mapping[str, Path], staged: str, size: int, stack: ExitStack
    ) -> None:
        self._readers: dict[str, StateReader] = {}
        self._writers: dict[str, ScatteredStateWriter] = {}
        for number, name in enumerate(names):
            self._readers[name] = StateReader(present.get(name), size)
            stack.callback(self._readers[name].close)
            self._writers[name] = ScatteredStateWriter(Path(f"{staged}.{number}"))
            stack.callback(self._writers[name].close)

    def fresh(self, name: str) -> bool:
        """Whether this is the first update from this peer that keeps the array."""
        return self._readers[name].fresh

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._readers[name].read(start, stop)

    def write(self, values: dict[str, Tensor], start: int) -> None:
        for name, writer in self._writers.items():
            writer.write(values[name], start)

    def finish(self) -> dict[str, Path]:
        for writer in self._writers.values():
            writer.finish()
        return {name: writer.path for name, writer in self._writers.items()}
