"""PowerSGD: of each weight matrix only a rank r is exchanged, found by power iterations over the rounds.

    turn 0   p_i = M_i F, F [n, r];    estimate = (mean p_i) F^T;   next F = orthonormal(estimate F)      [m, r]
    turn 1   q_i = M_i^T F, F [m, r];  estimate = F (mean q_i)^T;   next F = orthonormal(estimate^T F)    [n, r]

Vogels, Karimireddy, Jaggi 2020, after the PowerSGD of 2019, whose two exchanges a round are two turns of this. The
messages are linear: the mean of the messages is the message of the mean, so they add up, masked or not. The estimate is
biased and wants EF14: M_i = update + residual.

Only the receiver orthonormalises, and sends down the factor that all senders of the next round use; so no sender's
arithmetic has to agree with another's. Any estimate will do that the receiver makes: behind a robust rule it is the
step that the model took, so no liar chooses its directions alone. Where it is the messages' mean, estimate F is mean p.

A tensor with one dimension, or too small to gain, is exchanged as it is. `Slots` says where all lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from compressors.core.context import ChunkContext

Pieces = Sequence[tuple[int, int, int]]  # start, rows, columns


def orthonormal(columns: Tensor) -> Tensor:
    """[m, r], r <= m: an orthonormal basis of a space that holds the columns [m, r], finite; also for zeros."""
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A tensor of the vector, seen as a matrix [rows, columns]; of rank 0 if it is exchanged as it is."""

    start: int
    rows: int
    columns: int
    rank: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.columns

    def matrix(self, x: Tensor) -> Tensor:
        return x[self.start : self.stop].view(self.rows, self.columns)


class Slots:
    """The tensors of a vector [size] one after the other, as a `ParameterLayout` has them.

    `rank` at most; a matrix is factored if that makes it at least `rate_min` times smaller.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], rank: int, rate_min: float = 2.0) -> None:
        if rank < 1:
            raise ValueError(f"a rank is at least 1, not {rank}")
        self.all: list[Slot] = []
        at = 0
        for shape in shapes:
            rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
            fits = rank <= min(rows, columns) and rank * (rows + columns) * rate_min <= rows * columns
            slot = Slot(start=at, rows=rows, columns=columns, rank=rank if fits else 0)
            self.all.append(slot)
            at = slot.stop
        self.size = at
        self.factored = [slot for slot in self.all if slot.rank]
        self.plain = [slot for slot in self.all if not slot.rank]
        self.plain_size = sum(slot.stop - slot.start for slot in self.plain)
        self.left_size = sum(slot.rows * slot.rank for slot in self.factored)
        self.right_size = sum(slot.columns * slot.rank for slot in self.factored)

    def lefts(self, flat: Tensor) -> Iterator[Tensor]:
        """The [rows, rank] factors that lie in flat [left_size] one after the other."""
        at = 0
        for slot in self.factored:
            yield flat[at : at + slot.rows * slot.rank].view(slot.rows, slot.rank)
            at += slot.rows * slot.rank

    def rights(self, flat: Tensor) -> Iterator[Tensor]:
        """The [columns, rank] factors that lie in flat [right_size]."""
        at = 0
        for slot in self.factored:
            yield flat[at : at + slot.columns * slot.rank].view(slot.columns, slot.rank)
            at += slot.columns * slot.rank

    def take_plain(self, x: Tensor, out: Tensor) -> None:
        """x [size] -> out [plain_size]"""
        if self.plain:
            torch.cat([x[slot.start : slot.stop] for slot in self.plain], out=out)

    def put_plain(self, flat: Tensor, out: Tensor) -> None:
        """flat [plain_size] -> its places in out [size]"""
        at = 0
        for slot in self.plain:
            size = slot.stop - slot.start
            out[slot.start : slot.stop] = flat[at : at + size]
            at += size


class OneExchange:
    """One turn. `factor` is flat and has orthonormal columns: the right side's [right_size] in turn 0, the left's in 1.

    A message is [plain_size + size of the other side].
    """

    def __init__(self, slots: Slots, factor: Tensor, turn: int) -> None:
        self.slots = slots
        self.turn = turn
        self._factor = factor

    @property
    def message_size(self) -> int:
        return self.slots.plain_size + factor_size(self.slots, 1 - self.turn)

    def message(self, x: Tensor) -> Tensor:
        slots = self.slots
        sent = torch.empty(self.message_size, dtype=torch.float32)
        slots.take_plain(x, sent[: slots.plain_size])
        for slot, used, made in self._sides(sent):
            torch.mm(slot.matrix(x).T if self.turn else slot.matrix(x), used, out=made)
        return sent

    def estimate(self, message: Tensor, out: Tensor) -> None:
        """[size] of x's own message, or of the mean of all x given the messages' mean."""
        self.slots.put_plain(message[: self.slots.plain_size], out)
        for slot, used, made in self._sides(message):
            left, right = (used, made) if self.turn else (made, used)
            torch.mm(left, right.T, out=slot.matrix(out))

    def next_factor(self, estimate: Tensor) -> Tensor:
        """For the turn after; orthonormal also where the estimate [size] is zero."""
        slots = self.slots
        means = self.message(estimate)[slots.plain_size :]
        following = torch.empty_like(means)
        sides = slots.lefts if not self.turn else slots.rights
        for new, mean in zip(sides(following), sides(means), strict=True):
            new.copy_(orthonormal(mean))
        return following

    def _sides(self, message: Tensor) -> Iterator[tuple[Slot, Tensor, Tensor]]:
        """Each factored slot with the factor that is used and the one that is made."""
        slots, made = self.slots, message[self.slots.plain_size :]
        if self.turn:
            return zip(slots.factored, slots.lefts(self._factor), slots.rights(made), strict=True)
        return zip(slots.factored, slots.rights(self._factor), slots.lefts(made), strict=True)


def factor_size(slots: Slots, turn: int) -> int:
    """How many numbers the factor has that is used in a turn."""
    return slots.left_size if turn else slots.right_size


def first_factor(slots: Slots, turn: int, seed: int) -> Tensor:
    """[factor_size] where the iterations begin: random directions."""
    generator = torch.Generator().manual_seed(seed % (1 << 64))
    factor = torch.randn(factor_size(slots, turn), generator=generator, dtype=torch.float32)
    for columns in slots.lefts(factor) if turn else slots.rights(factor):
        columns.copy_(orthonormal(columns))
    return factor


class Factors:
    """Where in a flat vector, which has those of all chunks one behind the other, each chunk's factor lies."""

    def __init__(self, rank: int, chunks: Iterable[Pieces], turn: int) -> None:
        """For each chunk the matrices that make it up, as in `ChunkContext.pieces`."""
        shapes = ([(rows, columns) for _, rows, columns in pieces] for pieces in chunks)
        sizes = (factor_size(Slots(each, rank), turn) for each in shapes)
        self.turn = turn
        self._stops = [0, *accumulate(sizes)]

    @property
    def size(self) -> int:
        return self._stops[-1]

    def bounds(self, index: int) -> tuple[int, int]:
        """Of chunk `index`, counted from 0."""
        return self._stops[index], self._stops[index + 1]

    def at(self, place: ChunkContext, index: int, read: Callable[[int, int], Tensor] | None) -> ChunkContext:
        """The place of chunk `index` with its factor, if there is a vector: `read` gives [start, stop) of it."""
        factor = None if read is None else read(*self.bounds(index))
        return place._replace(turn=self.turn, factor=factor)
