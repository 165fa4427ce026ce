"""Four bits a coordinate: the nearest of at most 16 levels, times the block's largest magnitude.

    s = max|x| over the block;  q = index of the level nearest to x / s;  C(x) = s level[q]

Body: the blocks' scales, bfloat16; then the indices, two to a byte. The byte j of a block of n holds those of
its coordinates j (low half) and j + ceil(n / 2); after an odd n stands the index of the level 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from compressors.core.codec import DecodeError, PlainCodec, chunk_array
from compressors.core.compiled import compiled
from compressors.core.scratch import scratch
from compressors.device import levels as device
from compressors.device.codec import DeviceCodec
from compressors.device.transfer import upload
from compressors.quantizers.blocks import (
    SCALE_BYTES,
    SLACK,
    Codes,
    Floats,
    block_count,
    block_peaks,
    read_blocks,
    round_scales,
)

INDICES = 16


class LevelCodec(PlainCodec, DeviceCodec):
    """A codec that is its levels [15 or 16], ascending from -1 to 1 with 0 among them, and its block."""

    unbiased = False
    contractive = True
    linear = False
    block: ClassVar[int]  # even
    levels: ClassVar[tuple[float, ...]]

    def delta(self, size: int) -> float:
        return 1.0 - rounding_loss(self.levels, max(1, min(size, self.block)))

    def bytes_max(self, size: int) -> int:
        return SCALE_BYTES * block_count(size, self.block) + -(-size // 2)

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # deterministic
        values = chunk_array(x)
        stored, inverses = round_scales(block_peaks(values, self.block))
        packed = scratch("levels.packed", -(-values.size // 2), torch.uint8).numpy()
        pack_nearest(values, inverses, _tables(self.levels)[1], packed, self.block)
        return stored.tobytes() + packed.tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        values = chunk_array(out)
        scales, packed = self._read(body, values.size)
        unpack(packed, scales, _tables(self.levels)[0], values, self.block)

    def pack(self, x: Tensor, seed: int) -> Tensor:
        thresholds = _tables(self.levels)[1]
        zero = int(np.searchsorted(thresholds, 0.0, side="right"))
        return device.pack(x, upload(thresholds, x.device), zero, self.block)

    def check(self, body: bytes | memoryview, size: int) -> None:
        self._read(body, size)

    def unpack(self, body: Tensor, out: Tensor) -> None:
        device.unpack(body, out, upload(_tables(self.levels)[0], out.device), self.block)

    def _read(self, body: bytes | memoryview, size: int) -> tuple[Floats, Codes]:
        """The scales and indices of a body, checked. Raises `DecodeError`."""
        scales, packed = read_blocks(body, self.bytes_max(size), size, self.block)
        if len(self.levels) < INDICES and has_zero_half(packed):
            raise DecodeError("an index has no level")
        return scales, packed


@lru_cache(maxsize=16)
def _tables(levels: tuple[float, ...]) -> tuple[Floats, Floats]:
    """The level of each index, and the least x / s of the indices from 1 on.

    Of 15 levels the first has index 1, whatever lies below its threshold.
    """
    missing = INDICES - len(levels)
    table = np.zeros(INDICES, dtype=np.float32)
    table[missing:] = levels
    thresholds = np.full(INDICES - 1, -np.inf, dtype=np.float32)
    thresholds[missing:] = np.add(levels[1:], levels[:-1]) / 2
    return table, thresholds


@lru_cache(maxsize=1024)
def rounding_loss(levels: tuple[float, ...], size: int) -> float:
    """Largest |C(x) - x|^2 / |x|^2 that can be shown for a block of so many coordinates.

    A coordinate y = x / s rounded to the nearest level errs most at the midpoint m between two, by half their
    gap h: for any a its squared error is at most a y^2 + b with b = max(h^2 - a m^2) over all midpoints. As
    s^2 <= SLACK^2 |x|^2 the block loses at most (a + size SLACK^2 b) |x|^2, for the a for which that is least.
    """
    table = np.array(levels)
    halves, middles = np.diff(table) / 2, (table[1:] + table[:-1]) / 2
    a = np.linspace(0, 1, 1001)[:, None]
    b = np.maximum((halves**2 - a * middles**2).max(axis=1, keepdims=True), 0)
    return float((a + size * SLACK**2 * b).min())


@compiled
def pack_nearest(values: Floats, inverses: Floats, thresholds: Floats, packed: Codes, block: int) -> None:
    """Packs the index of the level nearest to each value: the first half of a block in low half bytes."""
    scaled = np.empty(block, dtype=np.float32)
    indices = np.empty(block, dtype=np.uint8)
    at = 0
    for b in range(inverses.size):
        row = values[b * block : (b + 1) * block]
        half = (row.size + 1) // 2
        scaled[2 * half - 1] = 0
        for i in range(row.size):
            scaled[i] = row[i] * inverses[b]
        for i in range(2 * half):
            indices[i] = 0
        for k in range(thresholds.size):  # threshold by threshold, so that many coordinates go at once
            for i in range(2 * half):
                indices[i] += np.uint8(scaled[i] >= thresholds[k])
        low, high, target = indices[:half], indices[half : 2 * half], packed[at : at + half]
        for i in range(half):
            target[i] = low[i] | (high[i] << 4)
        at += half


@compiled
def has_zero_half(packed: Codes) -> bool:
    """Whether a half byte is 0, which no sender writes."""
    found = np.uint8(0)
    for i in range(packed.size):
        found |= np.uint8((packed[i] & 15) == 0) | np.uint8((packed[i] >> 4) == 0)
    return bool(found)


@compiled
def unpack(packed: Codes, scales: Floats, table: Floats, values: Floats, block: int) -> None:
    """Writes each level times its block's scale."""
    scaled = np.empty(table.size, dtype=np.float32)
    at = 0
    for b in range(scales.size):
        for k in range(table.size):
            scaled[k] = table[k] * scales[b]
        row = values[b * block : (b + 1) * block]
        half = (row.size + 1) // 2
        low, high, source = row[:half], row[half:], packed[at : at + half]
        for i in range(half):
            low[i] = scaled[source[i] & 15]
        for i in range(high.size):
            high[i] = scaled[source[i] >> 4]
        at += half
