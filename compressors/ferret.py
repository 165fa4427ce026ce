"""Ferret: of each block its inner products with random vectors that both ends derive; they say what the block was.

    g_k = <v_k, x>;   C(x) = sum_k g_k v_k / (rho K_b), k = 1 .. K_b;   rho the variance of a coordinate of v_k

Unbiased; cos(C(x), x) is about 1 / sqrt(1 + d / K) for K inner products of d > K coordinates (Shu et al. 2024, whose
released code leaves out a factor of 3 with its rho). K_b is in proportion to the block's norm |x_b|, and at least 2.

The paper draws v from N(0, 1) cut off at +-1 / sqrt(d). Here its coordinates are +-1 / sqrt(d), by one random bit: all
the equations hold, with rho = 1 / d, and of all distributions this one errs least. E|C(x) - x|^2 on a block is
(d - 2 + E v^4 / rho^2) / K_b |x|^2, so (d - 1) / K_b here, and (d - 0.2) / K_b there.

A block is no tensor but one of B = ceil(K / 16) equal stretches of the chunk: 16 inner products each, on average,
whatever K is. To compute one costs as much as its block is long, so all of them 16 a coordinate, and not K.
With s_b = |x_b| / sum |x_b|, R = K - 2 B and K_b >= 1 + R s_b, a block of d at most:
    E|C(x) - x|^2 <= d sum |x_b|^2 / K_b <= d |x|^2 sum s_b / (1 + R s_b) <= d / (1 + R / B) |x|^2
first by Chebyshev's inequality on sums, as s_b^2 and s_b rise together where 1 / (1 + R s_b) falls, then by Jensen's.

All senders of a round draw the same vectors (`Place.common`), so updates that agree err alike, and how far apart two
are can still be told. But each sender has K_b of its own, so bodies do not add up.
Body: the K_b, uint16; then for each block its g_k / (rho K_b sqrt(d)), float32: what its coordinates gain or lose by
v_k. A block with K_b = d is sent as it is: the values themselves.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compressors._compiled import compiled
from compressors.codec import Codec, CodecError, DecodeError, check_length, chunk_array
from compressors.place import Place
from compressors.sparsifier import Floats

PER_BLOCK = 16
LEAST = 2  # inner products of a block, if it has as many coordinates
K_MAX = (1 << 16) - 1
MAGNITUDE_MAX = 2.0**126

Counts = NDArray[np.int64]
Words = NDArray[np.uint64]

# Philox 4x64-10 (Salmon et al. 2011): multipliers, and what is added to the key from round to round.
ROUNDS = 10
MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
WEYL_0, WEYL_1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Ferret(Codec):
    unbiased = True
    contractive = False
    linear = False

    def __init__(self, k: int, common: int = 0) -> None:
        if not LEAST <= k <= K_MAX:
            raise CodecError(f"ferret has from {LEAST} to {K_MAX} inner products a chunk, not {k}")
        self.k = k
        self.spelling = f"ferret:{k}"
        self._key = np.uint64(common % (1 << 64))

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        if argument is None or not (argument.isascii() and argument.isdecimal()):
            raise CodecError(
                f"ferret needs its number of inner products a chunk, such as ferret:4096, not {argument!r}"
            )
        return cls(int(argument[:9]))

    def at(self, place: Place) -> Ferret:
        return Ferret(self.k, place.common)

    def omega(self, size: int) -> float:
        if size <= self.k:
            return 0.0
        width, blocks = self._blocks(size)
        spare = (self.k - LEAST * blocks) / blocks
        return (width - 1) / (1 + spare) + 1e-4  # float32

    def bytes_max(self, size: int) -> int:
        return 2 * self._blocks(size)[1] + 4 * min(self.k, size)

    def encode(self, x: Tensor, seed: int) -> bytes:  # what is random both ends derive
        values = chunk_array(x)
        width, blocks = self._blocks(values.size)
        norms = np.empty(blocks, dtype=np.float64)
        find_norms(values, norms, width)
        finite = bool(np.isfinite(norms).all())
        counts = self._share(norms if finite else np.zeros(blocks), values.size)
        sums = np.full(int(counts.sum()), np.nan, dtype=np.float32)
        if finite:
            project(values, counts, width, self._key, sums)
        return counts.astype("<u2").tobytes() + sums.tobytes()

    def decode(self, body: bytes | memoryview, out: Tensor) -> None:
        target = chunk_array(out)
        width, blocks = self._blocks(target.size)
        if len(body) < 2 * blocks:
            raise DecodeError(f"the body has {len(body)} bytes where {2 * blocks} are due at least")
        counts = np.frombuffer(body, dtype="<u2", count=blocks).astype(np.int64)
        lengths = _lengths(target.size, width, blocks)
        if bool(((counts < np.minimum(LEAST, lengths)) | (counts > lengths)).any()):
            raise DecodeError("a block has too few or too many inner products")
        total = int(counts.sum())
        if total > self.k:
            raise DecodeError(f"the body claims {total} inner products where {self.k} are due at most")
        check_length(body, 2 * blocks + 4 * total)
        if not blocks:
            return
        gains = np.frombuffer(
            body, dtype="<f4", offset=2 * blocks
        ).copy()  # writeable: one type to compile for
        with np.errstate(invalid="ignore"):  # signalling NaN
            reach = np.add.reduceat(np.abs(gains, dtype=np.float64), np.cumsum(counts) - counts)
        if not bool((reach <= MAGNITUDE_MAX).all()):
            raise DecodeError("an inner product is not finite, or they are too large together")
        rebuild(gains, counts, width, self._key, target)

    def _blocks(self, size: int) -> tuple[int, int]:
        """How many coordinates all blocks but the last have, and how many blocks there are."""
        if not size:
            return 1, 0
        width = -(-size // -(-min(self.k, size) // PER_BLOCK))
        return width, -(-size // width)

    def _share(self, norms: NDArray[np.float64], size: int) -> Counts:
        """[blocks] inner products of each block, above 1 + R s_b unless its coordinates are fewer."""
        width, blocks = self._blocks(size)
        lengths = _lengths(size, width, blocks)
        if size <= self.k:
            return lengths
        total = float(norms.sum())
        shares = norms / total if total > 0 else np.full(blocks, 1 / blocks)
        spare = self.k - LEAST * blocks
        # Rounding the running total loses no inner product, and takes less than one from any block.
        stops = np.minimum(np.floor(np.cumsum(shares) * spare), spare)
        stops[-1] = spare
        counts: Counts = np.minimum(LEAST + np.diff(stops, prepend=0).astype(np.int64), lengths)
        return counts


def _lengths(size: int, width: int, blocks: int) -> Counts:
    lengths: Counts = np.minimum(width, size - np.arange(blocks, dtype=np.int64) * width)
    return lengths


@compiled
def find_norms(values: Floats, norms: NDArray[np.float64], width: int) -> None:
    for b in range(norms.size):
        row = values[b * width : (b + 1) * width]
        even, odd = 0.0, 0.0
        for i in range(0, row.size - 1, 2):
            even += np.float64(row[i]) * np.float64(row[i])
            odd += np.float64(row[i + 1]) * np.float64(row[i + 1])
        if row.size % 2:
            even += np.float64(row[-1]) * np.float64(row[-1])
        norms[b] = np.sqrt(even + odd)


@compiled
def high(a: np.uint64, b: np.uint64) -> np.uint64:
    """The upper 64 bits of the product."""
    a0, a1, b0, b1 = a & LOW, a >> HALF, b & LOW, b >> HALF
    middle = a1 * b0 + (a0 * b0 >> HALF)
    return np.uint64(a1 * b1 + (middle >> HALF) + ((a0 * b1 + (middle & LOW)) >> HALF))


@compiled
def draw(words: Words, key: np.uint64, group: int, block: int) -> None:
    """Fills words [a multiple of 4] as `numpy.random.Philox(key=key, counter=[0, group, block, 0])` would.

    The bit j of their byte i is the sign of coordinate i in the block's vector 8 group + j.
    """
    for at in range(0, words.size, 4):
        a, b, c, d = np.uint64(at // 4 + 1), np.uint64(group), np.uint64(block), np.uint64(0)
        first, second = key, np.uint64(0)
        for _ in range(ROUNDS):
            a, b, c, d = (
                high(MULTIPLIER_1, c) ^ b ^ first,
                MULTIPLIER_1 * c,
                high(MULTIPLIER_0, a) ^ d ^ second,
                MULTIPLIER_0 * a,
            )
            first, second = first + WEYL_0, second + WEYL_1
        words[at], words[at + 1], words[at + 2], words[at + 3] = a, b, c, d


@compiled
def project(values: Floats, counts: Counts, width: int, key: np.uint64, sums: Floats) -> None:
    """The inner products of all blocks, eight at a time: coordinates with the same byte of signs are added up first."""
    words = np.empty((width + 31) // 32 * 4, dtype=np.uint64)
    signs = words.view(np.uint8)
    bins = np.empty(256, dtype=np.float64)
    start = 0
    for b in range(counts.size):
        row, k = values[b * width : (b + 1) * width], counts[b]
        block_sums = sums[start : start + k]
        start += k
        if k == row.size:
            block_sums[:] = row
            continue
        for first in range(0, k, 8):
            draw(words, key, first // 8, b)
            bins[:] = 0
            for i in range(row.size):
                bins[signs[i]] += row[i]
            half = 128
            for j in range(
                7, -1, -1
            ):  # by the highest bit that is left: the difference of the halves, and their sum
                difference = 0.0
                for i in range(half):
                    difference += bins[half + i] - bins[i]
                    bins[i] += bins[half + i]
                if first + j < k:
                    block_sums[first + j] = np.float32(difference / k)
                half //= 2


@compiled
def rebuild(gains: Floats, counts: Counts, width: int, key: np.uint64, values: Floats) -> None:
    words = np.empty((width + 31) // 32 * 4, dtype=np.uint64)
    signs = words.view(np.uint8)
    table = np.empty(256, dtype=np.float64)
    narrow = np.empty(256, dtype=np.float32)
    start = 0
    for b in range(counts.size):
        row, k = values[b * width : (b + 1) * width], counts[b]
        block_gains = gains[start : start + k]
        start += k
        if k == row.size:
            row[:] = block_gains
            continue
        row[:] = 0
        for first in range(0, k, 8):
            eight = block_gains[first : first + 8]
            table[0] = 0.0
            filled = 1
            for j in range(8):  # what each byte of signs adds to its coordinate
                gain = np.float64(eight[j]) if j < eight.size else 0.0
                for i in range(filled):
                    table[filled + i] = table[i] + gain
                    table[i] -= gain
                filled *= 2
            narrow[:] = table
            draw(words, key, first // 8, b)
            for i in range(row.size):
                row[i] += narrow[signs[i]]
