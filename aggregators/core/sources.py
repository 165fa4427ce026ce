"""Updates as column chunks, wherever they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CHUNK_COLUMNS = 1 << 18


class Source(Protocol):
    """n updates of `size` coordinates. `chunks` may be asked for again, and then gives the same."""

    @property
    def n(self) -> int: ...

    @property
    def size(self) -> int: ...

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """(first coordinate, X [n, c] of floats) in the order of the columns. X may be used again for the
        next."""
        ...


@dataclass(frozen=True)
class MatrixSource:
    """The rows of a matrix [n, d]; its chunks are views."""

    matrix: Tensor

    @property
    def n(self) -> int:
        return self.matrix.shape[0]

    @property
    def size(self) -> int:
        return self.matrix.shape[1]

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, self.size, CHUNK_COLUMNS):
            yield start, self.matrix[:, start : start + CHUNK_COLUMNS]


class RowsSource:
    """n vectors [d], such as mapped files: copied chunk by chunk into one scratch of n rows.

    Raises `ValueError` where they differ in length, type or device.
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        if not rows or any(row.dim() != 1 for row in rows):
            raise ValueError("one or more vectors were due")
        if len({(row.shape, row.dtype, row.device) for row in rows}) != 1:
            raise ValueError("the vectors differ in length, type or device")
        self.rows = tuple(row.detach() for row in rows)

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        return len(self.rows[0])

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        first = self.rows[0]
        width = min(CHUNK_COLUMNS, self.size)
        room = torch.empty(self.n * width, dtype=first.dtype, device=first.device)
        for start in range(0, self.size, CHUNK_COLUMNS):
            width = min(CHUNK_COLUMNS, self.size - start)
            chunk = room[: self.n * width].view(self.n, width)
            for target, row in zip(chunk, self.rows, strict=True):
                target.copy_(row[start : start + width])
            yield start, chunk


class Widened:
    """A source whose chunks in half precision become float32: sums of halves lose what the updates say.

    No gradient follows them.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def n(self) -> int:
        return self._source.n

    @property
    def size(self) -> int:
        return self._source.size

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start, X in self._source.chunks():
            yield start, X.detach() if X.dtype.itemsize >= 4 else X.detach().float()


class Behind:
    """A source with more rows behind its own: the vectors that a rule keeps from round to round."""

    def __init__(self, source: Source, rows: Sequence[Tensor]) -> None:
        self._source = source
        self._rows = tuple(rows)

    @property
    def n(self) -> int:
        return self._source.n + len(self._rows)

    @property
    def size(self) -> int:
        return self._source.size

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        room: Tensor | None = None
        for start, X in self._source.chunks():
            if not self._rows:
                yield start, X
                continue
            n, width = X.shape
            if room is None:  # the first chunk is the widest
                room = torch.empty(self.n * width, dtype=X.dtype, device=X.device)
            chunk = room[: self.n * width].view(self.n, width)
            chunk[:n] = X
            for target, row in zip(chunk[n:], self._rows, strict=True):
                target.copy_(row[start : start + width])
            yield start, chunk

    def wide(self) -> Iterator[tuple[int, Tensor]]:
        """The same, in one piece where it lies so in memory: for what does not care how columns are cut."""
        if isinstance(self._source, MatrixSource) and not self._rows:
            yield 0, self._source.matrix
        else:
            yield from self.chunks()


class Chosen:
    """Some rows of a source."""

    def __init__(self, source: Source, rows: Tensor) -> None:
        self._source = source
        self._rows = rows

    @property
    def n(self) -> int:
        return len(self._rows)

    @property
    def size(self) -> int:
        return self._source.size

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start, X in self._source.chunks():
            yield start, X.index_select(0, self._rows.to(X.device))
