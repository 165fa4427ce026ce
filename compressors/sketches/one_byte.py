"""Just One Byte: a chunk as a sum of random directions that both ends derive; of each only its coefficient, one byte.

    x = sum_s a_s z_s, s = 1 .. P;   z_s [size] of +-1, from the sender's own key;   a_s on a grid

It is made for the algorithm `spsa`, whose updates are such sums: their coefficients are found again by least squares,
and the bytes are those that the algorithm chose. That takes directions that are independent, which of P + 64
coordinates all but surely are (the odds against it are below 2^-60) and of fewer than P never. Such a chunk, a model's
last or a small model's only one, is sent as another sum, the shortest that makes it, whose coefficients are rounded
once more. Of any other x it sends the projection on the P directions, with
E|x - Z x|^2 = (1 - rank / size) |x|^2, next to nothing for a chunk of many coordinates.

The grid is logarithmic, in steps of 1/8 nat: a = +-e^(level / 8 - 18), level 1 .. 127, from 1.7e-8 to 0.119. These are
what a coordinate moves by: below, float32 weights would not show it, and above, no model would survive it. Rounding to
the grid errs by 6.45 % at most, 3.1 % on average. What is larger becomes the largest; what is below e^(-18 + 1/16) is
zero. Since the grid ends on both sides, the codec is no contraction for chunks of every magnitude, and declares none.

Body: P bytes, the upper bit 1 for a below zero, the lower seven the level, 0 for zero. 0x80 stands for what is not
finite and is refused; all other bytes are what they say, so the largest body that anybody can write moves each
coordinate by 0.119 P. An empty chunk has an empty body.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressors.core.codec import Codec, CodecError, DecodeError, check_length, chunk_array
from compressors.core.compiled import compiled
from compressors.core.context import ChunkContext
from compressors.core.scratch import scratch
from compressors.sketches.directions import (
    EIGHT,
    PATTERNS,
    Doubles,
    Floats,
    Signs,
    add_eight,
    draw,
    project_eight,
    word_count,
)
from methods import Requirement, SpecValues, demand
from methods.spelling import spelled_names

COUNT_MAX = 256
GROUP = EIGHT  # directions that are drawn together
STEPS_PER_NAT, LEVEL_MAX, ORIGIN = 8, 127, -18.0
NOT_FINITE = 0x80
SINGULAR = 1e-12  # of the largest eigenvalue: what is below is one that is zero, as where size < P


def _grid() -> Floats:
    positive = np.exp(np.arange(LEVEL_MAX + 1) / STEPS_PER_NAT + ORIGIN)
    positive[0] = 0.0
    grid = np.concatenate([positive, -positive])
    grid[NOT_FINITE] = np.nan
    return grid.astype(np.float32)


GRID = _grid()  # [256] the coefficient of each byte


def to_bytes(coefficients: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """[P] the bytes of the grid's nearest, by ratio; what is not finite becomes 0x80."""
    magnitudes = np.clip(np.abs(coefficients), np.exp(ORIGIN), GRID[LEVEL_MAX])
    levels = np.rint((np.log(magnitudes) - ORIGIN) * STEPS_PER_NAT)
    finite = np.isfinite(coefficients)
    levels[~finite] = 0
    below = (coefficients < 0) & (levels > 0) | ~finite
    codes: NDArray[np.uint8] = levels.astype(np.uint8)
    codes[below] |= 0x80
    return codes


NAME, ALGORITHM = "one-byte", "spsa"


class OneByte(Codec):
    unbiased = False
    contractive = False
    linear = False
    example = "one-byte:16"
    source = "Zelikman et al. 2023"

    knobs: ClassVar[Mapping[str, str]] = {
        "count": "directions, a byte each; samples of a round",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        count: int

    def __init__(self, count: int, own: int = 0) -> None:
        if not 1 <= count <= COUNT_MAX:
            raise CodecError(f"one-byte has from 1 to {COUNT_MAX} directions, not {count}")
        self.count = count
        self.spelling = f"one-byte:{count}"
        self._key = np.uint64(own % (1 << 64))

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        if argument is None or not (argument.isascii() and argument.isdecimal()):
            raise CodecError(
                f"one-byte needs its number of directions, such as one-byte:16, not {argument!r}"
            )
        return cls(int(argument[:9]))

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        """An algorithm whose updates are sums of its directions."""
        if NAME in spelled_names(spec["compression"]["down"]):
            yield Requirement(
                f"{NAME} sends what {ALGORITHM} finds, and nothing else: compression.down is another codec",
                {"compression.down": "identity"},
            )
        if NAME in spelled_names(spec["compression"]["up"]):
            yield from demand(
                spec,
                f"{NAME} carries next to nothing of an update that is no sum of its directions: "
                f"it belongs to train.algorithm {ALGORITHM}",
                {"train.algorithm": ALGORITHM},
            )

    def at(self, place: ChunkContext) -> OneByte:
        return OneByte(self.count, place.own)

    def bytes_max(self, size: int) -> int:
        return self.count if size else 0

    def signs(self, group: int, size: int) -> Tensor:
        """[size] uint8: the bit j of number i is 1 where coordinate i of direction 8 group + j is +1, 0 for -1."""
        words = np.empty(word_count(size), dtype=np.uint64)
        draw(words, self._key, group, 0)
        return torch.from_numpy(words.view(np.uint8)[:size])

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # what is random both ends derive
        values = chunk_array(x)
        if not values.size:
            return b""
        groups, width = -(-self.count // EIGHT), word_count(values.size) * 8
        signs = scratch("one_byte.signs", groups * width, torch.uint8).numpy().reshape(groups, width)
        sums = np.empty(groups * EIGHT, dtype=np.float64)
        project(values, signs, self._key, sums)
        sums = sums[: self.count]
        if not bool(np.isfinite(sums).all()):  # each has all coordinates in it, and no finite ones overflow
            return bytes([NOT_FINITE]) * self.count
        products = _inner_products(signs, self.count, values.size)
        return to_bytes(np.linalg.lstsq(products, sums, rcond=SINGULAR)[0]).tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        target = chunk_array(out)
        check_length(body, self.bytes_max(target.size))
        codes = np.frombuffer(body, dtype=np.uint8)
        if bool((codes == NOT_FINITE).any()):
            raise DecodeError("a coefficient is not finite")
        rebuild(GRID[codes], self._key, target)


def _inner_products(signs: Signs, count: int, size: int) -> Doubles:
    """[P, P] of the directions with each other: as many coordinates as agree, less those that do not."""
    words = -(-size // 64)
    bits = scratch("one_byte.bits", count * words * 8, torch.uint8).numpy().reshape(count, words * 8)
    bits[:, -8:] = 0  # what is beyond the chunk agrees, and is not counted
    for s in range(count):
        packed = np.packbits(signs[s // EIGHT, :size] & (1 << s % EIGHT))
        bits[s, : packed.size] = packed
    rows = bits.view(np.uint64)
    products = np.empty((count, count))
    for s in range(count):
        differ = np.bitwise_count(rows[s:] ^ rows[s]).sum(axis=1, dtype=np.int64)
        products[s, s:] = products[s:, s] = size - 2 * differ
    return products


@compiled
def project(values: Floats, signs: Signs, key: np.uint64, sums: Doubles) -> None:
    """Fills signs [groups, words x 8] and the inner products with all their directions, sums [groups x 8]."""
    bins = np.empty(PATTERNS, dtype=np.float64)
    for group in range(signs.shape[0]):
        draw(signs[group].view(np.uint64), key, group, 0)
        project_eight(values, signs[group], bins, sums[EIGHT * group : EIGHT * (group + 1)])


@compiled
def rebuild(gains: Floats, key: np.uint64, values: Floats) -> None:
    """Writes the sum of the directions times their gains."""
    words = np.empty((values.size + 31) // 32 * 4, dtype=np.uint64)
    signs = words.view(np.uint8)
    table, narrow = np.empty(PATTERNS, dtype=np.float64), np.empty(PATTERNS, dtype=np.float32)
    values[:] = 0
    for first in range(0, gains.size, EIGHT):
        draw(words, key, first // EIGHT, 0)
        add_eight(gains[first : first + EIGHT], signs, table, narrow, values)
