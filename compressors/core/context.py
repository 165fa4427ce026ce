"""What both ends of a link know of a chunk beside its size."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ChunkContext(NamedTuple):
    """Where a chunk lies, and randomness that no body needs to carry, since both ends derive it.

    `common` is the same for all senders of a round, `own` is this sender's; both differ from chunk to chunk and
    from round to round. `pieces` (start, rows, columns) are the matrices that make up the chunk, row by row and
    one after the other: a tensor [a, b, c...] is a matrix [a, b * c * ...]; what a chunk's border leaves of a
    row, and a tensor with one dimension, is a single row. Without any the chunk is one row. `layers` (stop,
    number) tell which of the model's tensors, counted from 0, each stretch of the chunk belongs to.

    Some codecs go through `turn` 0 and 1 from version to version, with a `factor` that the receiver has handed to all
    senders of the round: see `compressors.lowrank.powersgd`.
    """

    common: int
    own: int
    pieces: tuple[tuple[int, int, int], ...] = ()
    layers: tuple[tuple[int, int], ...] = ()
    turn: int = 0
    factor: Tensor | None = None


NO_CONTEXT = ChunkContext(common=0, own=0)  # of a codec that was not asked for the one at a place
