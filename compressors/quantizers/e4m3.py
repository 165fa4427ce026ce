"""e4m3: a sign, four exponent and three mantissa bits, times a scale shared by 256; 8.0625 bits a coordinate.

    s = max|x| over the block;  C(x) = s / 448 * e4m3(448 x / s), rounded to nearest even

448 is the largest number of the format, 2^-9 the smallest (Micikevicius et al., "FP8 formats for deep
learning", 2022; there are no infinities). Of a normal number rounding loses at most 1/17, of a smaller one at
most 2^-10, so a block of 256 loses at most (1/289 + 256 * 2^-20 * 1.016 / 448^2) |x|^2, less than |x|^2 / 288.
Body: the blocks' scales, bfloat16; then the codes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compressors.core.codec import DecodeError, PlainCodec, chunk_array
from compressors.core.compiled import compiled
from compressors.core.scratch import scratch
from compressors.device import e4m3 as device
from compressors.device.codec import DeviceCodec
from compressors.quantizers.blocks import (
    SCALE_BYTES,
    Codes,
    Floats,
    block_count,
    block_peaks,
    read_blocks,
    round_scales,
)

BLOCK = 256
LARGEST = np.float32(448)
LEAST_NORMAL = np.uint32(0x3C800000)  # the float32 bits of 2^-6
ALIGNED = np.float32(2.0**14)  # a float32 here counts in steps of 2^-9
ALIGNED_BITS = np.uint32(0x46800000)


class E4m3(PlainCodec, DeviceCodec):
    unbiased = False
    contractive = True
    linear = False
    spelling = "e4m3"
    source = "Micikevicius et al. 2022"

    def delta(self, size: int) -> float:
        return 1.0 - 1 / 288

    def bytes_max(self, size: int) -> int:
        return SCALE_BYTES * block_count(size, BLOCK) + size

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # deterministic
        values = chunk_array(x)
        stored, inverses = round_scales(block_peaks(values, BLOCK))
        codes = scratch("e4m3.codes", values.size, torch.uint8).numpy()
        to_codes(values, inverses, codes)
        return stored.tobytes() + codes.tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        values = chunk_array(out)
        scales, codes = self._read(body, values.size)
        from_codes(codes, scales, _TABLE, values)

    def pack(self, x: Tensor, seed: int) -> Tensor:
        return device.pack(x, BLOCK)

    def check(self, body: bytes | memoryview, size: int) -> None:
        self._read(body, size)

    def unpack(self, body: Tensor, out: Tensor) -> None:
        device.unpack(body, out, BLOCK)

    def _read(self, body: bytes | memoryview, size: int) -> tuple[Floats, Codes]:
        """The scales and codes of a body, checked. Raises `DecodeError`."""
        scales, codes = read_blocks(body, self.bytes_max(size), size, BLOCK)
        if has_nan(codes):
            raise DecodeError("a code is not a number")
        return scales, codes


def _table() -> Floats:
    """What each code stands for, over 448; the two that are not numbers are never looked up."""
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    normal = np.ldexp(8.0 + mantissas, exponents - 10)
    magnitudes = np.where(exponents > 0, normal, np.ldexp(1.0 * mantissas, -9))
    table: Floats = (np.where(codes < 128, magnitudes, -magnitudes) / LARGEST).astype(np.float32)
    return table


_TABLE = _table()


@compiled
def to_codes(values: Floats, inverses: Floats, codes: Codes) -> None:
    """Writes each value's nearest e4m3 code, of values times their block's inverse scale."""
    scaled = np.empty(BLOCK, dtype=np.float32)
    shifted = np.empty(BLOCK, dtype=np.float32)
    bits, low = scaled.view(np.uint32), shifted.view(np.uint32)
    for b in range(inverses.size):
        row, target = values[b * BLOCK : (b + 1) * BLOCK], codes[b * BLOCK : (b + 1) * BLOCK]
        for i in range(row.size):
            scaled[i] = row[i] * inverses[b] * LARGEST
            shifted[i] = abs(scaled[i]) + ALIGNED  # rounds to steps of 2^-9
        for i in range(row.size):
            magnitude = np.uint32(bits[i] & np.uint32(0x7FFFFFFF))
            odd = np.uint32((magnitude >> np.uint32(20)) & np.uint32(1))
            rounded = np.uint32(magnitude + np.uint32(0x7FFFF) + odd)
            normal = np.uint32(rounded >> np.uint32(20)) - np.uint32(120 << 3)  # 127 - 7 exponents lower
            small = low[i] - ALIGNED_BITS
            code = normal if magnitude >= LEAST_NORMAL else small
            sign = np.uint32(bits[i] >> np.uint32(24)) & np.uint32(0x80)
            target[i] = np.uint8(np.uint32(code) | sign)


@compiled
def has_nan(codes: Codes) -> bool:
    """Whether a code is one of the two that stand for NaN."""
    found = np.uint8(0)
    for i in range(codes.size):
        found |= np.uint8((codes[i] & 0x7F) == 0x7F)
    return bool(found)


@compiled
def from_codes(codes: Codes, scales: Floats, table: Floats, values: Floats) -> None:
    """Writes each code's value, times its block's scale."""
    for b in range(scales.size):
        row, source = values[b * BLOCK : (b + 1) * BLOCK], codes[b * BLOCK : (b + 1) * BLOCK]
        for i in range(row.size):
            row[i] = table[source[i]] * scales[b]
