"""What both ends of a link know of a chunk beside its size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A matrix within a chunk: coordinates [start, start + rows * columns), row by row.

    A tensor [a, b, c...] is a matrix [a, b * c * ...]; what a chunk's border leaves of a row, and a tensor with
    one dimension, is a single row.
    """

    start: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.columns


@dataclass(frozen=True)
class Place:
    """Where a chunk lies, and randomness that no body needs to carry, since both ends derive it.

    `common` is the same for all senders of a round, `own` is this sender's; both differ from chunk to chunk and
    from round to round. `pieces` make up the chunk, one after the other; without any it is one row.
    """

    common: int
    own: int
    pieces: tuple[Piece, ...] = ()
