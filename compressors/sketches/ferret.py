"""Ferret: of each block its inner products with random vectors that both ends derive; they say what the block was.

    g_k = <v_k, x>;   C(x) = sum_k g_k v_k / (rho K_b), k = 1 .. K_b;   rho the variance of a coordinate of v_k

Unbiased; cos(C(x), x) is about 1 / sqrt(1 + d / K) for K inner products of d > K coordinates (Shu et al. 2024, whose
released code leaves out a factor of 3 with its rho). K_b is in proportion to the block's norm |x_b|, and at least 2.

The paper draws v from N(0, 1) cut off at +-1 / sqrt(d). Here its coordinates are +-1 / sqrt(d), by one random bit: all
the equations hold, with rho = 1 / d, and of all distributions this one errs least. E|C(x) - x|^2 on a block is
(d - 2 + E v^4 / rho^2) / K_b |x|^2, so (d - 1) / K_b here, and (d - 0.2) / K_b there.

A block is no tensor but one of B = ceil(K / 16) equal stretches of the chunk: 16 inner products each, on average,
whatever K is. To compute one costs as much as its block is long, so all of them 16 a coordinate, and not K. On what a
perceptron's layers learn this loses a third less than a block for each tensor, for a sixth of the work (K = 256).
With s_b = |x_b| / sum |x_b|, R = K - 2 B and K_b >= 1 + R s_b, a block of d at most:
    E|C(x) - x|^2 <= d sum |x_b|^2 / K_b <= d |x|^2 sum s_b / (1 + R s_b) <= d / (1 + R / B) |x|^2
first by Chebyshev's inequality on sums, as s_b^2 and s_b rise together where 1 / (1 + R s_b) falls, then by Jensen's.

All senders of a round draw the same vectors (`ChunkContext.common`), so updates that agree err alike, and how far apart
two are can still be told. But each sender has K_b of its own, so bodies do not add up.
Body: the K_b, uint16; then for each block its g_k / (rho K_b sqrt(d)), float32: what its coordinates gain or lose by
v_k. A block with K_b = d is sent as it is: the values themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compressors.core.codec import Codec, CodecError, DecodeError, check_length, chunk_array
from compressors.core.compiled import compiled
from compressors.core.context import ChunkContext
from compressors.sketches.directions import add_eight, draw, project_eight
from compressors.sparsifiers.sparsifier import Floats

PER_BLOCK = 16
LEAST = 2  # inner products of a block, if it has as many coordinates
K_MAX = (1 << 16) - 1
MAGNITUDE_MAX = 2.0**126

Counts = NDArray[np.int64]


class Ferret(Codec):
    example = "ferret:4096"
    source = "Shu et al. 2024"
    unbiased = True
    contractive = False
    linear = False

    knobs: ClassVar[Mapping[str, str]] = {
        "k": "inner products a chunk. More are truer and larger",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        k: int

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

    def at(self, place: ChunkContext) -> Ferret:
        return Ferret(self.k, place.common)

    def omega(self, size: int) -> float:
        if size <= self.k:
            return 0.0
        width, blocks = self._blocks(size)
        spare = (self.k - LEAST * blocks) / blocks
        return (width - 1) / (1 + spare) + 1e-4  # float32

    def bytes_max(self, size: int) -> int:
        sent = min(self.k, size)
        return 2 * -(-sent // PER_BLOCK) + 4 * sent  # never fewer bytes for a larger chunk

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # what is random both ends derive
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

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
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
    """Writes each block's L2 norm, summed in float64."""
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
def project(values: Floats, counts: Counts, width: int, key: np.uint64, sums: Floats) -> None:
    """The inner products of all blocks, eight at a time."""
    words = np.empty((width + 31) // 32 * 4, dtype=np.uint64)
    signs = words.view(np.uint8)
    bins, eight = np.empty(256, dtype=np.float64), np.empty(8, dtype=np.float64)
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
            project_eight(row, signs, bins, eight)
            for j in range(min(8, k - first)):
                block_sums[first + j] = np.float32(eight[j] / k)


@compiled
def rebuild(gains: Floats, counts: Counts, width: int, key: np.uint64, values: Floats) -> None:
    """Writes the sum of each block's directions times their gains."""
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
            draw(words, key, first // 8, b)
            add_eight(block_gains[first : first + 8], signs, table, narrow, row)
