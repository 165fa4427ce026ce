"""Natural compression: magnitudes rounded at random to one of the two neighbouring powers of two; 8 bits.

    2^e <= |x| < 2^(e+1):  |C(x)| = 2^(e+1) with probability |x| / 2^e - 1, else 2^e

Unbiased with omega = 1/8 (Horvath et al. 2022). The probability is met to within 2^-17.
Body: a byte b of at most 127, then a byte for each coordinate: its sign in the top bit, below it 0 for zero or
c for 2^(b + c - 127). With b as low as the largest magnitude allows, what is below 2^-124 times that magnitude
may become zero. From 2^127 on nothing decodes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressors.core.codec import DecodeError, PlainCodec, check_length, chunk_array
from compressors.core.compiled import compiled
from compressors.core.scratch import scratch
from compressors.device import natural as device
from compressors.device.codec import DeviceCodec
from compressors.device.transfer import noise
from compressors.quantizers.blocks import Codes, Floats, find_peaks, read_codes
from compressors.quantizers.dither import dither

EXPONENTS = 127  # codes of a magnitude that is not zero
NO_BASE = 255


class Natural(PlainCodec, DeviceCodec):
    unbiased = True
    contractive = True
    linear = False
    spelling = "natural"
    source = "Horvath et al. 2022"

    def omega(self, size: int) -> float:
        return 0.125 + 2.0**-16

    def delta(self, size: int) -> float:
        return 1.0 - self.omega(size)

    def bytes_max(self, size: int) -> int:
        return 1 + size

    def encode_host(self, x: Tensor, seed: int) -> bytes:
        values = chunk_array(x)
        bits = values.view(np.uint32)
        peak = np.zeros(1, dtype=np.uint32)
        find_peaks(bits, peak, max(1, values.size))
        base = max(0, (int(peak[0]) >> 23) + 1 - EXPONENTS)
        if base > EXPONENTS:
            base = NO_BASE
        codes = scratch("natural.codes", values.size, torch.uint8).numpy()
        to_powers(bits, dither(seed, values.size), base, codes)
        return bytes([base]) + codes.tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        values = chunk_array(out)
        self.check(body, values.size)
        from_powers(read_codes(body, 1), _table(body[0]), values)

    def pack(self, x: Tensor, seed: int) -> Tensor:
        return device.pack(x, noise(seed, x), EXPONENTS, NO_BASE)

    def check(self, body: bytes | memoryview, size: int) -> None:
        check_length(body, self.bytes_max(size))
        if body[0] > EXPONENTS:
            raise DecodeError(f"the base is {body[0]}, which is above {EXPONENTS}")

    def unpack(self, body: Tensor, out: Tensor) -> None:
        device.unpack(body, out)


def _table(base: int) -> Floats:
    magnitudes = np.ldexp(1.0, base - 127 + np.arange(EXPONENTS + 1)).astype(np.float32)
    magnitudes[0] = 0
    return np.concatenate((magnitudes, -magnitudes))


@compiled
def to_powers(bits: NDArray[np.uint32], noise: NDArray[np.uint16], base: int, codes: Codes) -> None:
    """Rounds each magnitude at random to a neighbouring power of two; a code is a sign and an exponent."""
    lowest = np.int32(base)
    for i in range(codes.size):
        magnitude = np.uint32(bits[i] & np.uint32(0x7FFFFFFF))
        # The mantissa is how far a number is on its way to the next power of two: adding a uniform 23-bit
        # number carries into the exponent with just that probability.
        lifted = np.uint32(magnitude + np.uint32(np.uint32(noise[i]) << np.uint32(7)) + np.uint32(64))
        code = max(np.int32(lifted >> np.uint32(23)) - lowest, np.int32(0))
        sign = np.uint32(bits[i] >> np.uint32(24)) & np.uint32(0x80)
        codes[i] = np.uint8(np.uint32(code) | sign)


@compiled
def from_powers(codes: Codes, table: Floats, values: Floats) -> None:
    """Writes each code's value from a table of all 256."""
    for i in range(codes.size):
        values[i] = table[codes[i]]
