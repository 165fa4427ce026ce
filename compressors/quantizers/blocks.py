"""Scales shared by blocks of neighbouring coordinates: bfloat16, rounded up, so at least what they stand for.

A block whose scale would be below 2^-126, the least normal float32, becomes zero. One that is not finite, or
above 3.389e38 where bfloat16 ends, makes a scale that does not decode.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from compressors.core.codec import DecodeError, check_length
from compressors.core.compiled import compiled
from compressors.core.scratch import scratch

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

SCALE_BYTES = 2
SLACK = 1 + 2.0**-7  # a stored scale is at most so many times what it stands for
_INFINITE = np.uint16(0x7F80)


def block_count(size: int, block: int) -> int:
    """Blocks of this width that cover `size` coordinates; the last may be shorter."""
    return -(-size // block)


def block_peaks(values: Floats, block: int) -> NDArray[np.uint32]:
    """[blocks] the float32 bits of each block's largest magnitude, not a number if it holds one. Scratch."""
    peaks = scratch("blocks.peaks", block_count(values.size, block), torch.float32).numpy().view(np.uint32)
    find_peaks(values.view(np.uint32), peaks, block)
    return peaks


@compiled
def find_peaks(bits: NDArray[np.uint32], peaks: NDArray[np.uint32], block: int) -> None:
    """Writes the bits of each block's largest magnitude into `peaks`; NaN counts as the largest."""
    # Bits of magnitudes are ordered as magnitudes are, infinity and then NaN above all.
    for b in range(peaks.size):
        row = bits[b * block : (b + 1) * block]
        peak = np.uint32(0)
        for i in range(row.size):
            peak = max(peak, np.uint32(row[i] & np.uint32(0x7FFFFFFF)))
        peaks[b] = peak


def round_scales(exact: NDArray[np.uint32]) -> tuple[NDArray[np.uint16], Floats]:
    """From float32 bits of scales that are not negative: the stored scales, and the reciprocals (0 for 0)."""
    stored = np.minimum((exact + np.uint32(0xFFFF)) >> np.uint32(16), np.uint32(0x7FC0)).astype(np.uint16)
    stored[exact < np.uint32(0x00800000)] = 0
    scales = _widened(stored)
    inverses = np.zeros_like(scales)
    np.divide(np.float32(1), scales, out=inverses, where=(stored > 0) & (stored < _INFINITE))
    return stored, inverses


def read_scales(body: bytes | memoryview, count: int) -> Floats:
    """[count] the scales a body begins with. Raises `DecodeError`."""
    stored = np.frombuffer(body, dtype="<u2", count=count)
    if count and stored.max() >= _INFINITE:
        raise DecodeError("a scale is negative, infinite or not a number")
    return _widened(stored)


def read_codes(body: bytes | memoryview, offset: int) -> Codes:
    """The bytes from `offset` on, read-only whatever holds them: one type, so that loops compile once."""
    codes = np.frombuffer(body, dtype=np.uint8, offset=offset)
    codes.flags.writeable = False
    return codes


def read_blocks(body: bytes | memoryview, length: int, size: int, block: int) -> tuple[Floats, Codes]:
    """The scales of a chunk's blocks and the codes behind them, of a body that has to have this length. Raises
    `DecodeError`."""
    check_length(body, length)
    count = block_count(size, block)
    return read_scales(body, count), read_codes(body, SCALE_BYTES * count)


def _widened(stored: NDArray[np.uint16]) -> Floats:
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
