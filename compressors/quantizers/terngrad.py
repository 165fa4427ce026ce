"""TernGrad: -1, 0 or 1 times the largest magnitude of a block of 320, five to a byte; 1.65 bits a coordinate.

    s = max|x| over the block;  C(x) = s sign(x) with probability |x| / s, else 0

Wen et al. 2017, with a scale for each block and without the clipping that would bias it. The variance is
s |x|_1 - |x|^2, and s |x|_1 <= (1 + sqrt n) / 2 |x|^2 for a block of n.
Body: the blocks' scales, bfloat16; then for each block of n ceil(n / 5) bytes: the byte j is the sum over
k = 0..4 of 3^k (1 + the ternary value of the coordinate j + k ceil(n / 5)), or 3^k where there is none.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressors.core.codec import DecodeError, PlainCodec, chunk_array
from compressors.core.compiled import compiled
from compressors.core.scratch import scratch
from compressors.device import terngrad as device
from compressors.device.codec import DeviceCodec
from compressors.device.transfer import noise
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
from compressors.quantizers.dither import dither

BLOCK = 320
WIDTH = BLOCK // 5
BYTES = 3**5  # so many values a byte may have
STEPS = np.float32(1 << 16)
HALF = np.float32(0.5)


class TernGrad(PlainCodec, DeviceCodec):
    unbiased = True
    contractive = False
    linear = False
    spelling = "terngrad"
    source = "Wen et al. 2017"

    def omega(self, size: int) -> float:
        return SLACK * (1 + sqrt(max(1, min(size, BLOCK)))) / 2 - 1

    def bytes_max(self, size: int) -> int:
        return SCALE_BYTES * block_count(size, BLOCK) + -(-size // 5)

    def encode_host(self, x: Tensor, seed: int) -> bytes:
        values = chunk_array(x)
        stored, inverses = round_scales(block_peaks(values, BLOCK))
        packed = scratch("terngrad.packed", -(-values.size // 5), torch.uint8).numpy()
        pack_trits(values, inverses, dither(seed, values.size), packed)
        return stored.tobytes() + packed.tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        values = chunk_array(out)
        scales, packed = self._read(body, values.size)
        unpack_trits(packed, scales, values)

    def pack(self, x: Tensor, seed: int) -> Tensor:
        return device.pack(x, noise(seed, x), BLOCK)

    def check(self, body: bytes | memoryview, size: int) -> None:
        self._read(body, size)

    def unpack(self, body: Tensor, out: Tensor) -> None:
        device.unpack(body, out, BLOCK)

    def _read(self, body: bytes | memoryview, size: int) -> tuple[Floats, Codes]:
        """The scales and trits of a body, checked. Raises `DecodeError`."""
        scales, packed = read_blocks(body, self.bytes_max(size), size, BLOCK)
        if packed.size and packed.max() >= BYTES:
            raise DecodeError(f"a byte is above {BYTES - 1}")
        return scales, packed


@compiled
def pack_trits(values: Floats, inverses: Floats, noise: NDArray[np.uint16], packed: Codes) -> None:
    """Rounds each value at random to -1, 0 or 1 times its block's scale, and packs five to a byte."""
    for b in range(inverses.size):
        row, dithers = values[b * BLOCK : (b + 1) * BLOCK], noise[b * BLOCK : (b + 1) * BLOCK]
        width = (row.size + 4) // 5
        target = packed[b * WIDTH : b * WIDTH + width]
        target[:] = (BYTES - 1) // 2  # all five 1, which stands for 0
        power = 1
        for k in range(5):
            lane, thresholds = row[k * width : (k + 1) * width], dithers[k * width : (k + 1) * width]
            up, down = np.uint8(power), np.uint8(256 - power)
            for j in range(lane.size):
                scaled = lane[j] * inverses[b] * STEPS
                kept = abs(scaled) > np.float32(thresholds[j]) + HALF
                signed = up if scaled > 0 else down
                target[j] += signed if kept else np.uint8(0)
            power *= 3


@compiled
def unpack_trits(packed: Codes, scales: Floats, values: Floats) -> None:
    """Writes -1, 0 or 1 times its block's scale for each value."""
    rest = np.empty(WIDTH, dtype=np.uint16)
    for b in range(scales.size):
        row = values[b * BLOCK : (b + 1) * BLOCK]
        width = (row.size + 4) // 5
        source = packed[b * WIDTH : b * WIDTH + width]
        for j in range(width):
            rest[j] = source[j]
        for k in range(5):
            lane = row[k * width : (k + 1) * width]
            for j in range(lane.size):
                third = np.uint16(np.uint32(rest[j]) * np.uint32(171) >> np.uint32(9))  # rest // 3 up to 383
                lane[j] = np.float32(np.int32(rest[j]) - 3 * np.int32(third) - 1) * scales[b]
                rest[j] = third
