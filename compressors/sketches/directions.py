"""Random directions of +-1, eight at a time, that both ends of a link derive from a key.

The bit j of the byte i of `signs` is the sign of coordinate i in the direction 8 group + j. Coordinates with the same
byte are added up first, so that eight inner products, or a sum of eight directions, cost one look-up a coordinate.
Every number is a sum in a fixed order: the same key gives the same bits on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressors.core.compiled import compiled

EIGHT = 8
PATTERNS = 1 << EIGHT

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Words = NDArray[np.uint64]
Signs = NDArray[np.uint8]

# Philox 4x64-10 (Salmon et al. 2011): multipliers, and what is added to the key from round to round.
ROUNDS = 10
MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
WEYL_0, WEYL_1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def word_count(size: int) -> int:
    """How many words hold a byte for each of `size` coordinates: a multiple of 4, as they are drawn."""
    return (size + 31) // 32 * 4


@compiled
def high(a: np.uint64, b: np.uint64) -> np.uint64:
    """The upper 64 bits of the product."""
    a0, a1, b0, b1 = a & LOW, a >> HALF, b & LOW, b >> HALF
    middle = a1 * b0 + (a0 * b0 >> HALF)
    return np.uint64(a1 * b1 + (middle >> HALF) + ((a0 * b1 + (middle & LOW)) >> HALF))


@compiled
def draw(words: Words, key: np.uint64, group: int, block: int) -> None:
    """Fills words [a multiple of 4] as `numpy.random.Philox(key=key, counter=[0, group, block, 0])` would."""
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
def project_eight(values: Floats, signs: Signs, bins: Doubles, sums: Doubles) -> None:
    """The inner products of `values` with a group's directions, sums [8]; `bins` [256] is scratch."""
    bins[:] = 0
    for i in range(values.size):
        bins[signs[i]] += values[i]
    half = 128
    for j in range(7, -1, -1):  # by the highest bit that is left: the difference of the halves, and their sum
        difference = 0.0
        for i in range(half):
            difference += bins[half + i] - bins[i]
            bins[i] += bins[half + i]
        sums[j] = difference
        half //= 2


@compiled
def add_eight(gains: Floats, signs: Signs, table: Doubles, narrow: Floats, values: Floats) -> None:
    """Adds a group's directions, each times its gain, to `values`; gains [up to 8], the others are 0.

    `table` and `narrow` [256] are scratch.
    """
    table[0] = 0.0
    filled = 1
    for j in range(EIGHT):  # what each byte of signs adds to its coordinate
        gain = np.float64(gains[j]) if j < gains.size else 0.0
        for i in range(filled):
            table[filled + i] = table[i] + gain
            table[i] -= gain
        filled *= 2
    narrow[:] = table
    for i in range(values.size):
        values[i] += narrow[signs[i]]
