"""Scaled sign: one bit a coordinate and, for each block of 256, the mean magnitude; 1.0625 bits a coordinate.

    C(x) = sign(x) |x|_1 / n over a block of n, where sign(0) = 1

    |C(x) - x|^2 = (1 - |x|_1^2 / (n |x|^2)) |x|^2: delta is 1 / n where one coordinate is all there is, and
    about 0.6 for a normal distribution. Bernstein et al. 2018; Karimireddy et al. 2019.

Body: the blocks' scales, bfloat16; then the signs, 1 for below zero. In a block of n the bit k of the byte j
belongs to the coordinate j + k ceil(n / 8); bits of no coordinate are 0.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressors.core.codec import PlainCodec, chunk_array
from compressors.core.compiled import compiled
from compressors.core.scratch import scratch
from compressors.device import sign as device
from compressors.device.codec import DeviceCodec
from compressors.quantizers.blocks import SCALE_BYTES, Codes, Floats, block_count, read_blocks, round_scales

BLOCK = 256
LANES = 32
PART = np.float32(1 / BLOCK)


class Sign(PlainCodec, DeviceCodec):
    unbiased = False
    contractive = True
    linear = False
    spelling = "sign"
    source = "Bernstein et al. 2018; Karimireddy et al. 2019"

    def delta(self, size: int) -> float:
        return (1 - 2.0**-13) / max(1, min(size, BLOCK))  # a scale off by 2^-7 costs 2^-14 of it

    def bytes_max(self, size: int) -> int:
        return SCALE_BYTES * block_count(size, BLOCK) + -(-size // 8)

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # deterministic
        values = chunk_array(x)
        means = np.empty(block_count(values.size, BLOCK), dtype=np.float32)
        packed = scratch("sign.packed", -(-values.size // 8), torch.uint8).numpy()
        pack_signs(values, means, packed)
        return round_scales(means.view(np.uint32))[0].tobytes() + packed.tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        values = chunk_array(out)
        scales, packed = self._read(body, values.size)
        unpack_signs(packed, scales.view(np.uint32), values.view(np.uint32))

    def pack(self, x: Tensor, seed: int) -> Tensor:
        return device.pack(x, BLOCK)

    def check(self, body: bytes | memoryview, size: int) -> None:
        self._read(body, size)

    def unpack(self, body: Tensor, out: Tensor) -> None:
        device.unpack(body, out, BLOCK)

    def _read(self, body: bytes | memoryview, size: int) -> tuple[Floats, Codes]:
        """The scales and signs of a body, checked. Raises `DecodeError`."""
        return read_blocks(body, self.bytes_max(size), size, BLOCK)


@compiled
def pack_signs(values: Floats, means: Floats, packed: Codes) -> None:
    """Writes each block's mean magnitude and the signs of its values, eight to a byte."""
    sums = np.empty(LANES, dtype=np.float32)
    for b in range(means.size):
        row = values[b * BLOCK : (b + 1) * BLOCK]
        width = (row.size + 7) // 8
        target = packed[b * LANES : b * LANES + width]
        sums[:] = 0
        target[:] = 0
        for k in range(8):
            lane = row[k * width : (k + 1) * width]
            for j in range(lane.size):
                sums[j] += abs(lane[j]) * PART  # a part each: no sum becomes infinite
                target[j] |= np.uint8(np.uint8(lane[j] < 0) << np.uint8(k))
        total = np.float32(0)
        for j in range(width):
            total += sums[j]
        means[b] = abs(total) * np.float32(BLOCK / row.size)  # a NaN may come with its sign set


@compiled
def unpack_signs(packed: Codes, scales: NDArray[np.uint32], bits: NDArray[np.uint32]) -> None:
    """Writes each block's scale with the sign of each value, as bits of float32."""
    for b in range(scales.size):
        row = bits[b * BLOCK : (b + 1) * BLOCK]
        width = (row.size + 7) // 8
        source = packed[b * LANES : b * LANES + width]
        scale = scales[b]
        for k in range(8):
            lane = row[k * width : (k + 1) * width]
            for j in range(lane.size):
                negative = np.uint32(source[j] >> np.uint8(k)) & np.uint32(1)
                lane[j] = scale | np.uint32(negative << np.uint32(31))
