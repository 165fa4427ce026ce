"""What both ends of a link know of each chunk: its `compressors.ChunkContext`.

Both know the base that an update is made against, so all randomness that they share is derived from its digest: nobody
can choose it, and none of it travels.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import compressors
from exchange.request import UpdateRequest
from muster.model.layout import ParameterLayout, Vector
from muster.seeds import derive_seed

Piece = tuple[int, int, int]  # start within the chunk, rows, columns
Layer = tuple[int, int]  # stop within the chunk, number of the tensor


@dataclass(frozen=True, kw_only=True)
class ChunkContexts:
    """Of the chunks of one body. `sender` is a seed that differs from peer to peer; what goes down has 0."""

    layout: ParameterLayout
    base_digest: str
    round: int
    sender: int = 0

    def at(self, index: int) -> compressors.ChunkContext:
        """The context of chunk `index` of the parameters."""
        common = derive_seed(self.base_digest, "place", self.round, index)
        return compressors.ChunkContext(common, derive_seed(common, self.sender), *pieces(self.layout, index))


def contexts_of(request: UpdateRequest, layout: ParameterLayout) -> ChunkContexts:
    """Of the chunks of the update that is asked for."""
    return ChunkContexts(
        layout=layout, base_digest=request.base_digest, round=request.round, sender=request.seed
    )


def pieces(layout: Vector, index: int) -> tuple[tuple[Piece, ...], tuple[Layer, ...]]:
    """The matrices that make up a chunk, and where in it each tensor ends."""
    start, stop = layout.chunk_bounds(index)
    found: list[Piece] = []
    layers: list[Layer] = []
    number = max(0, bisect_right(layout.offsets, start) - 1)
    while number < len(layout.tensors) and layout.offsets[number] < stop:
        at, tensor = layout.offsets[number], layout.tensors[number]
        number += 1
        first, last = max(start, at), min(stop, at + tensor.size)
        if first < last:
            columns = tensor.size // tensor.shape[0] if len(tensor.shape) > 1 else tensor.size
            found.extend(_cut(first - at, last - at, columns, at - start))
            layers.append((last - start, number - 1))
    return tuple(found), tuple(layers)


def _cut(first: int, last: int, columns: int, shift: int) -> list[Piece]:
    """Coordinates [first, last) of a matrix: what is left of a row, whole rows, what is left of a row."""
    whole_from = min(last, -(-first // columns) * columns)
    whole_to = max(whole_from, last // columns * columns)
    parts = (
        (first, 1, whole_from - first),
        (whole_from, (whole_to - whole_from) // columns, columns),
        (whole_to, 1, last - whole_to),
    )
    return [(at + shift, rows, width) for at, rows, width in parts if rows * width]
