"""PowerSGD: of each weight matrix only a rank r is exchanged, found by power iterations over the rounds.

    two exchanges   p_i = M_i Q;  P = orthonormal(mean p_i);  q_i = M_i^T P
                    estimate = P (mean q_i)^T;  next Q = mean q_i
    one exchange    f_i = M_i F;  estimate = (mean f_i) F^T;  next F = orthonormal(mean f_i), then M_i^T, in turns

Vogels, Karimireddy, Jaggi 2019; Vogels, Karimireddy, Jaggi 2020 for one exchange. Both are linear: the mean of the
messages is the message of the mean, so they add up, masked or not. The estimate is biased and wants EF14:
M_i = update + residual, and `residual` gives what is left.

Only the receiver orthonormalises, and sends down what the senders are to use; so no sender's arithmetic has to
agree with another's. A robust rule fits the second of two exchanges: P is orthonormal, so the q_i have the inner
products of the P q_i^T that they stand for. What P spans is then still a mean that a liar can turn.

A tensor with one dimension, or too small to gain, is exchanged as it is. `Slots` says where all lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


def orthonormal(columns: Tensor) -> Tensor:
    """[m, r], r <= m: an orthonormal basis of a space that holds the columns [m, r], finite; also for zeros."""
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis


def unit_columns(columns: Tensor, fallback: Tensor) -> Tensor:
    """[n, r] the columns at length 1; those that are zero come from `fallback`, or an iteration would end there."""
    lengths = columns.norm(dim=0)
    return torch.where(lengths > 0, columns / lengths, fallback)


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

    def start(self, seed: int) -> Tensor:
        """[right_size] where the iterations of a run begin: normal numbers."""
        return torch.randn(self.right_size, generator=torch.Generator().manual_seed(seed))

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


class TwoExchanges:
    """All is flat float32. The receiver keeps `basis` [right_size], at first `slots.start`, from round to round.

    sender   first = x's                              [plain_size + left_size]
    receiver directions = of the first messages' mean [left_size]
    sender   second = x's, along the directions       [right_size]
    receiver estimate = of both means                 [size], and the next basis
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots

    def first(self, x: Tensor, basis: Tensor) -> Tensor:
        slots = self.slots
        message = torch.empty(slots.plain_size + slots.left_size)
        slots.take_plain(x, message[: slots.plain_size])
        lefts = slots.lefts(message[slots.plain_size :])
        for slot, left, right in zip(slots.factored, lefts, slots.rights(basis), strict=True):
            torch.mm(slot.matrix(x), right, out=left)
        return message

    def directions(self, first_mean: Tensor) -> Tensor:
        slots = self.slots
        found = torch.empty(slots.left_size)
        means = slots.lefts(first_mean[slots.plain_size :])
        for mean, left in zip(means, slots.lefts(found), strict=True):
            left.copy_(orthonormal(mean))
        return found

    def second(self, x: Tensor, directions: Tensor) -> Tensor:
        slots = self.slots
        message = torch.empty(slots.right_size)
        factors = zip(slots.factored, slots.lefts(directions), slots.rights(message), strict=True)
        for slot, left, right in factors:
            torch.mm(slot.matrix(x).T, left, out=right)
        return message

    def estimate(self, plain: Tensor, directions: Tensor, second: Tensor, out: Tensor) -> None:
        """Of the mean of all x, given `plain` [plain_size], with which a first message begins, and the second."""
        slots = self.slots
        slots.put_plain(plain, out)
        factors = zip(slots.factored, slots.lefts(directions), slots.rights(second), strict=True)
        for slot, left, right in factors:
            torch.mm(left, right.T, out=slot.matrix(out))

    def residual(self, x: Tensor, directions: Tensor, second: Tensor) -> Tensor:
        """[size] what a sender's own second message leaves of its x; the mean of all is what the estimate misses."""
        left_over = torch.empty_like(x)
        plain = torch.empty(self.slots.plain_size)
        self.slots.take_plain(x, plain)
        self.estimate(plain, directions, second, left_over)
        return torch.sub(x, left_over, out=left_over)

    def next_basis(self, second_mean: Tensor, basis: Tensor) -> Tensor:
        following = torch.empty(self.slots.right_size)
        factors = zip(
            self.slots.rights(following),
            self.slots.rights(second_mean),
            self.slots.rights(basis),
            strict=True,
        )
        for new, mean, old in factors:
            new.copy_(unit_columns(mean, old))
        return following


class OneExchange:
    """Half the traffic and one trip a round, for half a power iteration: the sides take turns.

    The receiver keeps `factor`, orthonormal, and sends it down: the right side's [right_size] in even rounds, the
    left side's [left_size] in odd ones. A message is [plain_size + size of the other side].
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots

    def start(self, seed: int) -> Tensor:
        factor = self.slots.start(seed)
        for right in self.slots.rights(factor):
            right.copy_(orthonormal(right))
        return factor

    def message(self, x: Tensor, factor: Tensor, round: int) -> Tensor:
        slots = self.slots
        sent = torch.empty(slots.plain_size + (slots.right_size if round % 2 else slots.left_size))
        slots.take_plain(x, sent[: slots.plain_size])
        for slot, used, made in self._sides(factor, sent, round):
            torch.mm(slot.matrix(x).T if round % 2 else slot.matrix(x), used, out=made)
        return sent

    def estimate(self, message: Tensor, factor: Tensor, round: int, out: Tensor) -> None:
        """[size] of x's own message, or of the mean of all x given the messages' mean."""
        slots = self.slots
        slots.put_plain(message[: slots.plain_size], out)
        for slot, used, made in self._sides(factor, message, round):
            left, right = (used, made) if round % 2 else (made, used)
            torch.mm(left, right.T, out=slot.matrix(out))

    def residual(self, x: Tensor, message: Tensor, factor: Tensor, round: int) -> Tensor:
        left_over = torch.empty_like(x)
        self.estimate(message, factor, round, left_over)
        return torch.sub(x, left_over, out=left_over)

    def next_factor(self, message_mean: Tensor, round: int) -> Tensor:
        """For the round after; orthonormal also where the mean is zero."""
        slots = self.slots
        means = message_mean[slots.plain_size :]
        following = torch.empty_like(means)
        sides = slots.rights if round % 2 else slots.lefts
        for new, mean in zip(sides(following), sides(means), strict=True):
            new.copy_(orthonormal(mean))
        return following

    def _sides(self, factor: Tensor, message: Tensor, round: int) -> Iterator[tuple[Slot, Tensor, Tensor]]:
        """Each factored slot with the factor that is used and the one that is made."""
        slots, made = self.slots, message[self.slots.plain_size :]
        if round % 2:
            return zip(slots.factored, slots.lefts(factor), slots.rights(made), strict=True)
        return zip(slots.factored, slots.rights(factor), slots.lefts(made), strict=True)
