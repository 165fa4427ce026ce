"""Updates as column chunks, decoded from their mapped files in memory that is bounded by bytes.

Whatever the number of updates, no more than `SCRATCH_BYTES_MAX` of decoded values are held. Of small models all updates
are decoded once and kept for the second sweep; else a chunk of all updates at a time; of more updates than that allows,
a stretch of a chunk of all, for which each chunk is decoded again. A weighted sum needs no chunk of all: it is folded a
few updates at a time, see `Decoded.rows`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

import aggregators
import compressors
from compressors.core import integers
from compressors.core.replay import Term
from exchange import links, recipe
from exchange.factors import CommonFactor
from exchange.job import SCRATCH_BYTES_MAX, UpdateInput
from exchange.payload import PayloadReader
from exchange.statefile import StateReader
from muster.files.digests import digest_bytes
from muster.model.layout import CHUNK_COORDINATES, COUNTERS, PARAMS, Column, ParameterLayout, Vector
from muster.spec.model import RunSpec

STRETCH_COORDINATES_MIN = 4096  # narrower ones would cost more in calls than they save in memory
HELD_BYTES_MAX = 32 << 20  # from sweep to sweep: memory that is touched first costs more than to decode again
FOLDED_BYTES_MAX = 16 << 20  # of a weighted sum at a time: about what a last-level cache holds
DRAWN_BYTES = 4096  # of each update's first chunk


class Decoded:
    """Updates, and behind them the vectors that the rule keeps, as columns of rows [n + kept]."""

    def __init__(
        self,
        *,
        layout: ParameterLayout,
        links: Sequence[links.Link],
        readers: Sequence[PayloadReader],
        kept: Mapping[str, StateReader],
        scratch_bytes_max: int = SCRATCH_BYTES_MAX,
    ) -> None:
        self.layout = layout
        self.links = links
        self.readers = readers
        self.kept = kept  # by name
        self._width = min(CHUNK_COORDINATES, layout.columns_size)
        self._rows = len(readers) + len(kept)
        self._all_fit = 4 * self._rows * layout.columns_size <= min(HELD_BYTES_MAX, scratch_bytes_max)
        self._scratch_bytes_max = scratch_bytes_max
        self._stretch = _stretch(4 * self._rows, self._width, scratch_bytes_max)
        self.rows_max = max(
            1, min(FOLDED_BYTES_MAX, scratch_bytes_max) // (4 * self._width)
        )  # of a sum at a time
        self._held: dict[int, Tensor] = {}  # by the column's start
        self._scratch = torch.empty(0)
        self._chunk = torch.empty(0)

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """The first of two sweeps: (first coordinate, X [n + kept, c]) in the order of the columns. What fits stays
        decoded for the second."""
        for column in self.layout.columns:
            for at, X in self.stretches(column, again=True):
                yield column.start + at, X

    def stretches(self, column: Column, *, again: bool = False) -> Iterator[tuple[int, Tensor]]:
        """(first coordinate within the column, X [n + kept, c]); X is used again for the next. `again`: the column will
        be asked for once more."""
        width = column.stop - column.start
        held = self._held.pop(column.start, None)
        if held is None and self._stretch >= width:
            first = self._rows * column.start if again and self._all_fit else 0
            held = self._room(first, self._rows * width).view(self._rows, width)
            for row, reader, link in zip(held, self.readers, self.links, strict=False):
                link.read(reader, column, row)
            self._read_kept(column.start, held)
        if held is not None:
            if again and self._all_fit:
                self._held[column.start] = held
            yield 0, held
            return
        for at in range(0, width, self._stretch):
            yield at, self._decode_stretch(column, at, min(at + self._stretch, width))

    def holds(self, column: Column) -> bool:
        """Whether the first sweep has left it decoded."""
        return column.start in self._held

    def rows(self, column: Column, chosen: Sequence[int], out: Tensor) -> None:
        """The column of the chosen updates into out [len(chosen), c]."""
        for row, i in zip(out, chosen, strict=True):
            self.links[i].read(self.readers[i], column, row)

    def counters(self, index: int) -> Iterator[tuple[int, Tensor]]:
        """Chunk `index` of the updates' counters: (first within the chunk, values [n, c] int64)."""
        start, stop = self.layout.groups[COUNTERS].chunk_bounds(index)
        step = _stretch(8 * len(self.readers), stop - start, self._scratch_bytes_max)
        for at in range(0, stop - start, step):
            rows = [
                integers.decode(reader.chunk(COUNTERS, index), stop - start)[at : at + step]
                for reader in self.readers
            ]
            yield at, torch.stack(rows)

    def counter_chunks(self) -> int:
        return self.layout.groups.get(COUNTERS, Vector(tensors=())).chunk_count

    def drawn(self) -> str:
        """What a rule's randomness comes from beside the run's seed, which peers are told: nobody knows all updates
        before the round is closed, so no liar can aim at a bucket or at the coordinates that are sampled."""
        return digest_bytes(b"".join(reader.chunk(PARAMS, 0)[:DRAWN_BYTES] for reader in self.readers))

    def verify(self) -> None:
        """Raises `StorageError` "blob.damaged" unless all updates are the files that their digests name."""
        for reader in self.readers:
            reader.verify()

    def terms(self, index: int, shares: Sequence[float]) -> list[Term]:
        """The bodies of chunk `index` of the parameters, of the updates that have a share."""
        return [
            Term(share, link.contexts.at(index).own, reader.chunk(PARAMS, index))
            for share, link, reader in zip(shares, self.links, self.readers, strict=True)
            if share
        ]

    def _decode_stretch(self, column: Column, start: int, stop: int) -> Tensor:
        if not len(self._chunk):
            self._chunk = torch.empty(self._width)
        chunk = self._chunk[: column.stop - column.start]
        X = self._room(0, self._rows * (stop - start)).view(self._rows, stop - start)
        for row, reader, link in zip(X, self.readers, self.links, strict=False):
            link.read(reader, column, chunk)
            row.copy_(chunk[start:stop])
        self._read_kept(column.start + start, X)
        return X

    def _read_kept(self, start: int, X: Tensor) -> None:
        for row, vector in zip(X[len(self.readers) :], self.kept.values(), strict=True):
            row.copy_(vector.read(start, start + X.shape[1]))

    def _room(self, first: int, size: int) -> Tensor:
        """Flat [size] of the scratch, from `first` on."""
        if not len(self._scratch):
            widest = self.layout.columns_size if self._all_fit else min(self._stretch, self._width)
            self._scratch = torch.empty(self._rows * widest)
        return self._scratch[first : first + size]


def _stretch(column_bytes: int, width: int, bytes_max: int) -> int:
    """How many of a chunk's coordinates are decoded at a time, which take `column_bytes` each."""
    if column_bytes * width <= bytes_max:
        return width
    return max(1, bytes_max // column_bytes // STRETCH_COORDINATES_MIN) * STRETCH_COORDINATES_MIN


@contextmanager
def decoded(
    spec: RunSpec,
    updates: Sequence[UpdateInput],
    kept: Mapping[str, Path | None],
    layout: ParameterLayout,
    *,
    scratch_bytes_max: int = SCRATCH_BYTES_MAX,
) -> Generator[Decoded]:
    """Each update is decoded against its own base; `kept` are the files of the rule's vectors (None: zeros)."""
    with ExitStack() as stack:
        up = compressors.build(spec.compression.up)
        vectors: dict[str, StateReader] = {}
        for name, path in kept.items():
            vectors[name] = StateReader(path, layout.columns_size)
            stack.callback(vectors[name].close)
        factors: dict[str, CommonFactor] = {}  # by base
        readers: list[PayloadReader] = []
        uplinks: list[links.Link] = []
        for update in updates:
            base = update.base
            if base.digest not in factors:
                factors[base.digest] = CommonFactor(up, layout, base.version, base.factor)
                stack.callback(factors[base.digest].close)
            reader = PayloadReader(update.path, digest=update.digest)
            stack.callback(reader.close)
            readers.append(reader)
            contexts = links.contexts(
                spec,
                layout,
                base_digest=base.digest,
                round=base.round,
                peer_id=update.peer_id,
                role=update.role,
            )
            spelling = reader.manifest.codec_of(PARAMS)
            link = links.Link(spec, spelling, contexts, estimate=base.estimate, factor=factors[base.digest])
            stack.callback(link.close)
            uplinks.append(link)
        yield Decoded(
            layout=layout,
            links=uplinks,
            readers=readers,
            kept=vectors,
            scratch_bytes_max=scratch_bytes_max,
        )


def kept_names(pipeline: aggregators.Pipeline, updates: Sequence[UpdateInput]) -> list[str]:
    """How the vectors that the rule keeps are named among a server's states."""
    keys = [update.peer_id for update in updates]
    return [f"{recipe.RULE_STATE}{name}" for name in pipeline.state_names(keys)]
