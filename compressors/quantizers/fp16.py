"""fp16: IEEE half precision with an exponent shared by the chunk; 2 bytes a coordinate and 2 more.

    2^14 <= max|x| / s < 2^15, s a power of two;  C(x) = s half(x / s), rounded to nearest even

So nothing overflows, and small updates do not vanish: of coordinates down to 2^-28 times the largest, rounding
loses at most 2^-11, of smaller ones at most 2^-39 times the largest. From 2^127 on nothing decodes.
Body: the exponent of s, int16; then the halves.
"""

from __future__ import annotations

from math import frexp

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressors.core.codec import DecodeError, PlainCodec, check_length, chunk_array
from compressors.core.scratch import scratch
from compressors.device import fp16 as device
from compressors.device.codec import DeviceCodec
from compressors.quantizers.blocks import Floats, find_peaks

EXPONENT_MIN, EXPONENT_MAX = -126, 112  # float32 holds these powers, their reciprocals and 65504 times them
NOT_FINITE = 0x7FFF
INFINITE_HALF = 0x7C00
MAGNITUDE_MAX = 2.0**127


class Fp16(PlainCodec, DeviceCodec):
    unbiased = False
    contractive = True
    linear = False
    spelling = "fp16"

    def delta(self, size: int) -> float:
        return 1.0 - 2.0**-21

    def bytes_max(self, size: int) -> int:
        return 2 + 2 * size

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # deterministic
        values = chunk_array(x)
        size = values.size
        exponent = _exponent(values)
        halves = scratch("fp16.halves", size, torch.float16)
        if exponent != NOT_FINITE:
            scaled = scratch("fp16.scaled", size, torch.float32)
            halves.copy_(torch.mul(x.detach(), 2.0**-exponent, out=scaled))
        return exponent.to_bytes(2, "little", signed=True) + halves.view(torch.int16).numpy().tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        halves, exponent = self._read(body, out.numel())
        out.copy_(halves)
        out.mul_(2.0**exponent)

    def pack(self, x: Tensor, seed: int) -> Tensor:
        return device.pack(x, EXPONENT_MIN, EXPONENT_MAX, NOT_FINITE)

    def check(self, body: bytes | memoryview, size: int) -> None:
        self._read(body, size)

    def unpack(self, body: Tensor, out: Tensor) -> None:
        device.unpack(body, out)

    def _read(self, body: bytes | memoryview, size: int) -> tuple[Tensor, int]:
        """The halves, scratch, and the exponent of a body, checked. Raises `DecodeError`."""
        check_length(body, self.bytes_max(size))
        exponent = int.from_bytes(body[:2], "little", signed=True)
        if not EXPONENT_MIN <= exponent <= EXPONENT_MAX:
            raise DecodeError(f"the exponent is {exponent}")
        halves = scratch("fp16.halves", size, torch.float16)
        bits: NDArray[np.int16] = halves.view(torch.int16).numpy()
        np.copyto(bits, np.frombuffer(body, dtype="<i2", offset=2))
        if size and _largest(bits) >= INFINITE_HALF:
            raise DecodeError("a value is not finite")
        return halves, exponent


def _exponent(values: Floats) -> int:
    peak = np.zeros(1, dtype=np.float32)
    find_peaks(values.view(np.uint32), peak.view(np.uint32), max(1, values.size))
    largest = float(peak[0])
    if not largest < MAGNITUDE_MAX:  # nor if it is not a number
        return NOT_FINITE
    return min(max(frexp(largest)[1] - 15, EXPONENT_MIN), EXPONENT_MAX)


def _largest(bits: NDArray[np.int16]) -> int:
    magnitudes = scratch("fp16.magnitudes", bits.size, torch.int16).numpy()
    return int(np.bitwise_and(bits, np.int16(0x7FFF), out=magnitudes).max())
