"""PowerSGD: of each matrix of a chunk only a rank r, found by two power iterations.

"powersgd:4" sends both sides, each sender its own. "powersgd:4:common" sends one side, along directions that all the
senders of a round have in common and that go down with the model: half as many bytes up, and bodies that add up. At
equal bytes neither is always ahead.

    Q random;  twice: P = orthonormal(M Q), Q = orthonormal(M^T P);   C(M) = P (M^T P)^T, with the last P

Vogels, Karimireddy, Jaggi 2019, as a codec: without "common" nothing is kept from round to round, the start is drawn
anew. It is a projection: |C(M) - M|^2 = |M|^2 - |M^T P|^2. The matrix is taken with its shorter side, n, as columns.
Then
    E |M^T P|^2 >= r / n |M|^2
over the start: with A = M^T M and U an orthonormal basis of what Q spans, |M^T P|^2 = tr((U^T A U)^-1 U^T A^2 U), and
U^T A^2 U >= (U^T A U)^2, so no less than tr(U^T A U), which is r / n tr(A) on average as U has no direction that it
prefers; and a power iteration never loses. No more is true of every matrix: all that are orthogonal meet it. Of real
updates far more is kept.

A matrix is one of `ChunkContext.pieces`; one whose factors are not at least 2 times smaller than itself is sent as it
is, and without a place the chunk is. Senders of a round begin alike (`ChunkContext.common`), decoding takes no
randomness. Body: for each matrix in turn its factors [rows, r] and [r, columns], or itself; float32.

With "common" it is PowerSGD with one exchange, `compressors.lowrank.powersgd`: all senders of a round have one factor
in common (`ChunkContext.factor`; without one, random directions), so that the bodies hold but the other; the steps so
far are where each iteration begins. Its delta is that of the first turn: later ones keep what the steps before them
spanned. Body: what is sent as it is; then the factors; float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import frexp, isqrt
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from compressors.core.codec import Codec, CodecError, DecodeError, check_length, chunk_array
from compressors.core.compiled import compiled
from compressors.core.context import NO_CONTEXT, ChunkContext
from compressors.core.scratch import scratch
from compressors.lowrank.powersgd import OneExchange, Slot, Slots, factor_size, first_factor, orthonormal
from compressors.sparsifiers.sparsifier import Floats

ITERATIONS = 2
RANK_MAX = 128  # of a matrix that fills a chunk of 2^18 more would not gain
MAGNITUDE_MAX = 2.0**126


class LowRank(Codec):
    example = "powersgd:4"
    source = "Vogels, Karimireddy, Jaggi 2019, 2020"
    unbiased = False
    contractive = True

    knobs: ClassVar[Mapping[str, str]] = {
        "rank": "rank of each matrix, from 1 to 128. Higher is truer and larger",
        "common": "one factor that all senders of a round share and that is not sent",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        rank: int
        common: bool = False

    def __init__(self, rank: int, *, common: bool = False, place: ChunkContext = NO_CONTEXT) -> None:
        """The rank; then "common", for one factor that all senders of a round share and that is not sent."""
        if not 1 <= rank <= RANK_MAX:
            raise CodecError(f"powersgd has a rank from 1 to {RANK_MAX}, not {rank}")
        self.rank = rank
        self.common = self.linear = self.shares_factor = common
        self.spelling = f"powersgd:{rank}" + ":common" * common
        self._place = place

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        rank, colon, option = (argument or "").partition(":")
        if not (rank.isascii() and rank.isdecimal()):
            raise CodecError(f"powersgd needs its rank, such as powersgd:4, not {argument!r}")
        if colon and option != "common":
            raise CodecError(
                f"powersgd takes its rank and then common, such as powersgd:4:common, not {argument!r}"
            )
        return cls(int(rank[:9]), common=bool(colon))

    def at(self, place: ChunkContext) -> LowRank:
        return LowRank(self.rank, common=self.common, place=place)

    def delta(self, size: int) -> float:
        """Of the worst matrix that a chunk of this size may hold; on average over `ChunkContext.common`.

        With a common factor that is of the first turn. A later one keeps what the steps before it spanned, which is
        more of real updates, and may be nothing of one that is made to be orthogonal to them.
        """
        if self.common:  # all of one side may be lost but r of its columns; the other has more than 2 r
            return min(1.0, self.rank * (2 * self.rank + 1) / max(1, size))
        longest = isqrt(size)  # a matrix's shorter side
        # r (m + n) 2 <= m n wants m n >= 16 r^2: below that, all is sent as it is.
        return self.rank / longest if longest >= 4 * self.rank else 1.0

    def bytes_max(self, size: int) -> int:
        return 4 * size

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # the place says where iterations begin
        values = chunk_array(x)
        if self.common:
            return self.exchange(values.size).message(x.detach()).numpy().tobytes()
        generator = torch.Generator().manual_seed(self._place.common % (1 << 64))
        parts: list[bytes] = []
        for slot in self._slots(values.size).all:
            if slot.rank:
                parts += _factors(slot.matrix(x.detach()), slot.rank, generator)
            else:
                parts.append(values[slot.start : slot.stop].tobytes())
        return b"".join(parts)

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        target = chunk_array(out)
        if self.common:
            self._decode_common(body, out)
            return
        slots = self._slots(target.size)
        check_length(body, 4 * (slots.plain_size + slots.left_size + slots.right_size))
        numbers = np.frombuffer(body, dtype="<f4").copy()  # writeable, aligned: one type to compile for
        parts: list[tuple[Slot, Floats]] = []
        at = 0
        for slot in slots.all:
            count = slot.rank * (slot.rows + slot.columns) or slot.rows * slot.columns
            part = numbers[at : at + count]
            _check(slot, part)
            parts.append((slot, part))
            at += count
        for slot, part in parts:
            whole = target[slot.start : slot.stop]
            if slot.rank:
                cut = slot.rows * slot.rank
                multiply(part[:cut], part[cut:], slot.rank, slot.columns, whole)
            else:
                whole[:] = part

    def exchange(self, size: int) -> OneExchange:
        """With the factor of the place that the codec is bound to. Raises `ValueError` if that is for another chunk."""
        slots, place = self._slots(size), self._place
        factor = place.factor
        if factor is None:
            factor = first_factor(slots, place.turn, place.common)
        if factor.numel() != factor_size(slots, place.turn):
            raise ValueError(f"a factor of {factor.numel()} numbers, not {factor_size(slots, place.turn)}")
        return OneExchange(slots, factor, place.turn)

    def _decode_common(self, body: bytes | memoryview, out: Tensor) -> None:
        exchange = self.exchange(out.numel())
        check_length(body, 4 * exchange.message_size)
        numbers = np.frombuffer(body, dtype="<f4").copy()
        with np.errstate(invalid="ignore"):  # signalling NaN
            peak = float(np.abs(numbers).max(initial=0.0))
        # A factor's columns have length 1, so no product of a row with one is larger than this.
        if not peak * self.rank <= MAGNITUDE_MAX:
            raise DecodeError("a value is not finite, or too large")
        exchange.estimate(torch.from_numpy(numbers), out.detach())

    def _slots(self, size: int) -> Slots:
        shapes = [(rows, columns) for _, rows, columns in self._place.pieces] or [(1, size)]
        slots = Slots(shapes, self.rank)
        if slots.size != size:
            raise ValueError(f"the chunk has {size} coordinates, and its place is for {slots.size}")
        return slots


def _factors(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[bytes, bytes]:
    """[rows, rank] and [rank, columns]; not numbers if the matrix holds a value that is not finite."""
    rows, columns = matrix.shape
    basis = torch.randn(min(rows, columns), rank, generator=generator, dtype=torch.float32)
    peak = float(torch.maximum(matrix.max(), -matrix.min()))
    if not peak < float("inf"):
        return bytes(np.full(rows * rank, np.nan, "<f4")), bytes(np.full(rank * columns, np.nan, "<f4"))
    # Near 1, so that no product ends where float32 does.
    scale = 2.0 ** min(126, max(-120, frexp(peak)[1]))
    scaled = scratch("lowrank.scaled", matrix.numel(), torch.float32).view(rows, columns)
    torch.mul(matrix, 1 / scale, out=scaled)
    tall = scaled if rows >= columns else scaled.T
    directions = orthonormal(tall @ basis)
    for _ in range(ITERATIONS - 1):
        directions = orthonormal(tall @ orthonormal(tall.T @ directions))
    shares = (tall.T @ directions).mul_(scale)
    left, right = (directions, shares) if rows >= columns else (shares, directions)
    return left.contiguous().numpy().tobytes(), right.T.contiguous().numpy().tobytes()


def _check(slot: Slot, part: Floats) -> None:
    """Raises `DecodeError` if what becomes of a part might not be finite."""
    if not slot.rank:
        if not bool(np.isfinite(part).all()):
            raise DecodeError("a value is not finite")
        return
    cut = slot.rows * slot.rank
    with np.errstate(invalid="ignore"):  # signalling NaN
        left, right = float(np.abs(part[:cut]).max()), float(np.abs(part[cut:]).max())
    if not (left <= MAGNITUDE_MAX and right <= MAGNITUDE_MAX and slot.rank * left * right <= MAGNITUDE_MAX):
        raise DecodeError("a factor is not finite, or the two are too large together")


@compiled
def multiply(left: Floats, right: Floats, rank: int, columns: int, product: Floats) -> None:
    """In one order on every machine, which a library's product does not promise."""
    for i in range(product.size // columns):
        row = product[i * columns : (i + 1) * columns]
        row[:] = 0
        for k in range(rank):
            factor, other = left[i * rank + k], right[k * columns : (k + 1) * columns]
            for j in range(columns):
                row[j] += factor * other[j]
