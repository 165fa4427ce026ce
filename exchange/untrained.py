"""How what is not trained moves in a round: buffers and counters, see `muster.model.layout`.

No optimizer, codec or momentum touches them. Of n updates of which f may lie:

    mean    base and the rule's aggregate of what changed, held within what the base and the updates themselves span: a
            variance stays one, whatever the rule has scaled, remembered or rounded. Of a rule that tells directions
            only (sign-vote), the median of what changed
    max     the greatest of the updates' values, whatever f: one liar can set it
    min     the least of them
    any     of flags: those that an update has set, which is `max`
    trimmed-max, trimmed-min, trimmed-any
            the same of what is left without the f greatest (least) values, which is the (f + 1)-th: f liars are passed
            over, and so is what no more than f honest updates say

Where a buffer's base is not finite, nothing can be added to it: the median of what the updates make of it is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from muster.model.layout import CHUNK_COORDINATES, MEAN, MIN, TRIMMED, TRIMMED_MIN, Vector
from muster.model.modelfile import chunk_pieces


@dataclass(frozen=True)
class Chunk:
    """Where a chunk of buffers or counters, or the stretch [first, stop) of it, lies, and how many updates may lie
    about it."""

    vector: Vector
    index: int
    faults: int
    first: int = 0
    stop: int = CHUNK_COORDINATES

    def stretch(self, first: int, count: int) -> Chunk:
        return replace(self, first=first, stop=first + count)

    def parts(self) -> Iterator[tuple[slice, str]]:
        """Each tensor's part of the stretch, counted from its first coordinate, and the tensor's move."""
        for piece in chunk_pieces(self.vector, self.index):
            start = max(piece.at, self.first)
            stop = min(piece.at + piece.stop - piece.start, self.stop)
            if start < stop:
                yield slice(start - self.first, stop - self.first), piece.spec.move


def move_buffers(chunk: Chunk, base: Tensor, updates: Tensor, delta: Tensor, out: Tensor) -> None:
    """Writes the new chunk into out [c]: of `base` [c], the `updates` [n, c] and their aggregate [c]."""
    least, most = updates.amin(0).clamp_(max=0.0), updates.amax(0).clamp_(min=0.0)
    torch.add(base, torch.clamp(delta, least, most), out=out)
    odd = ~base.isfinite()
    if bool(odd.any()):
        out[odd] = _values(base[odd], updates[:, odd]).median(0).values
    for part, move in chunk.parts():
        if move != MEAN:
            out[part] = ordered(_values(base[part], updates[:, part]), move, chunk.faults)


def _values(base: Tensor, updates: Tensor) -> Tensor:
    """What the updates make of the base, [n, c]."""
    told = torch.where(updates == 0, base, updates)
    return torch.where(base.isfinite(), base + updates, told)


def move_counters(chunk: Chunk, updates: Tensor) -> Tensor:
    """The new chunk [c] of the updates' values [n, c], both int64."""
    out = torch.empty(updates.shape[1], dtype=torch.int64)
    for part, move in chunk.parts():
        out[part] = ordered(updates[:, part], move, chunk.faults)
    return out


def ordered(values: Tensor, move: str, faults: int) -> Tensor:
    """The value of [n, c] that the move stands for, [c]. Where so many may lie that trimming leaves nobody, the
    median."""
    rank = min(faults, (len(values) - 1) // 2) if move in TRIMMED else 0
    return values.sort(dim=0, descending=move not in (MIN, TRIMMED_MIN)).values[rank]
