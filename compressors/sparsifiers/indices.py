"""Strictly increasing indices as bytes: Golomb-Rice codes, or varints, of the gaps between them.

A gap g is the number of coordinates left out between two that are sent.

    rice    g >> b in unary (ones and a zero), then b low bits: within 2 % of the entropy where indices are random
            (Golomb 1966; Rice 1979). One byte tells b; bits fill bytes from the lowest up, the last is padded by zeros.
    varint  g in bytes of 7 bits, low ones first, the high bit set on all but the last (LEB128): larger, but what
            is uneven about the gaps is left for an entropy coder to find.

Decoding proves the indices increasing and within the chunk, whatever the bytes are, and takes no other bytes than those
that encoding makes of these indices (but for a choice of b).
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from compressors.core.codec import DecodeError
from compressors.core.compiled import compiled
from compressors.sparsifiers.sparsifier import Indices

Bytes = NDArray[np.uint8]

SHIFT_MAX = 24
_TRUNCATED, _BEYOND, _PADDING, _LONG = -1, -2, -3, -4
_WHY = {
    _TRUNCATED: "the indices end too early",
    _BEYOND: "an index runs past the chunk",
    _PADDING: "there are bits behind the last index",
    _LONG: "a gap is written with more bytes than it needs",
}


def rice_shift(count: int, size: int) -> int:
    """The b that is best for so many random indices: 2^b is about 0.69 times the mean gap."""
    if not count:
        return 0
    return min(SHIFT_MAX, max(0, round(log2(max(1.0, 0.69 * size / count)))))


def rice_bytes_max(count: int, size: int) -> int:
    """No body of `count` indices below `size` is longer."""
    shift = rice_shift(count, size)
    return 1 + ceil((count * (1 + shift) + ((size - count) >> shift if count else 0)) / 8)


def varint_bytes_max(count: int, size: int) -> int:
    """Bytes that `count` increasing indices below `size` take at most as varints of their gaps."""
    left_out = size - count  # the gaps' sum
    return count + sum(min(count, left_out >> bits) for bits in range(7, 32, 7))


def encode_rice(indices: Indices, size: int) -> bytes:
    """indices [count] strictly increasing from 0 on and below `size`"""
    around = rice_shift(indices.size, size)
    shifts = np.arange(max(0, around - 1), min(SHIFT_MAX, around + 1) + 1)
    # The middle one bounds the size and is where the mean gap leads; a neighbour may do a little better.
    bits = count_rice_bits(indices, shifts)
    shift = int(shifts[int(np.argmin(bits))])
    body = np.zeros(1 + ceil(int(bits.min()) / 8), dtype=np.uint8)
    body[0] = shift
    write_rice(indices, shift, body)
    return body.tobytes()


def decode_rice(body: bytes | memoryview, count: int, size: int) -> Indices:
    """`count` indices. Raises `DecodeError`."""
    raw = np.frombuffer(body, dtype=np.uint8)
    if not raw.size or raw[0] > SHIFT_MAX:
        raise DecodeError("the indices have no Rice parameter, or one that is too large")
    return _checked(count, read_rice, raw, size)


def encode_varint(indices: Indices, size: int) -> bytes:  # noqa: ARG001  # as encode_rice
    """The gaps between increasing indices, as varints."""
    body = np.empty(count_varint_bytes(indices), dtype=np.uint8)
    write_varint(indices, body)
    return body.tobytes()


def decode_varint(body: bytes | memoryview, count: int, size: int) -> Indices:
    """`count` indices. Raises `DecodeError`."""
    return _checked(count, read_varint, np.frombuffer(body, dtype=np.uint8), size)


def _checked(count: int, read: Callable[[Bytes, int, Indices], int], raw: Bytes, size: int) -> Indices:
    if count > 8 * raw.size:  # before any memory is taken for them
        raise DecodeError(_WHY[_TRUNCATED])
    indices = np.empty(count, dtype=np.intp)
    status = read(raw, size, indices)
    if status:
        raise DecodeError(_WHY[status])
    return indices


@compiled
def count_rice_bits(indices: Indices, shifts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits that Rice coding of the gaps takes, for each shift."""
    totals = np.zeros(shifts.size, dtype=np.int64)
    for s in range(shifts.size):
        shift, last, total = shifts[s], -1, 0
        for i in range(indices.size):
            total += (indices[i] - last - 1) >> shift
            last = indices[i]
        totals[s] = total + indices.size * (1 + shift)
    return totals


@compiled
def write_rice(indices: Indices, shift: int, body: Bytes) -> None:
    """Writes the shift, then the Rice codes of the gaps."""
    at, held, filled, last = 1, np.int64(0), 0, np.int64(-1)  # `filled` < 8 bits are held between the steps
    low = (1 << shift) - 1
    for i in range(indices.size):
        gap = indices[i] - last - 1
        last = indices[i]
        ones = gap >> shift
        while ones >= 16:
            held |= 0xFFFF << filled
            body[at] = held & 0xFF
            body[at + 1] = (held >> 8) & 0xFF
            held >>= 16
            at += 2
            ones -= 16
        held |= ((1 << ones) - 1) << filled
        filled += ones + 1
        held |= (gap & low) << filled
        filled += shift
        while filled >= 8:
            body[at] = held & 0xFF
            held >>= 8
            at += 1
            filled -= 8
    if filled:
        body[at] = held


@compiled
def read_rice(body: Bytes, size: int, indices: Indices) -> int:
    """Reads `indices.size` indices; gives 0, or a negative number that says what is wrong."""
    shift = np.int64(body[0])
    at, held, filled, last = 1, np.int64(0), np.int64(0), np.int64(-1)
    low = (np.int64(1) << shift) - 1
    for i in range(indices.size):
        gap = np.int64(0)
        while True:
            if not filled:
                if at >= body.size:
                    return _TRUNCATED
                held, filled, at = np.int64(body[at]), np.int64(8), at + 1
            bit = held & 1
            held >>= 1
            filled -= 1
            if not bit:
                break
            gap += np.int64(1) << shift
            if gap >= size:
                return _BEYOND
        while filled < shift:
            if at >= body.size:
                return _TRUNCATED
            held |= np.int64(body[at]) << filled
            filled, at = filled + 8, at + 1
        last += 1 + gap + (held & low)
        held >>= shift
        filled -= shift
        if last >= size:
            return _BEYOND
        indices[i] = last
    return _PADDING if held or at < body.size else 0


@compiled
def count_varint_bytes(indices: Indices) -> int:
    """Bytes that the gaps take as varints."""
    last, total = -1, indices.size
    for i in range(indices.size):
        gap = (indices[i] - last - 1) >> 7
        last = indices[i]
        while gap:
            total += 1
            gap >>= 7
    return total


@compiled
def write_varint(indices: Indices, body: Bytes) -> None:
    """Writes the gaps as varints."""
    at, last = 0, -1
    for i in range(indices.size):
        gap = indices[i] - last - 1
        last = indices[i]
        while gap >= 128:
            body[at] = (gap & 127) | 128
            gap >>= 7
            at += 1
        body[at] = gap
        at += 1


@compiled
def read_varint(body: Bytes, size: int, indices: Indices) -> int:
    """Reads `indices.size` indices; gives 0, or a negative number that says what is wrong."""
    at, last = 0, np.int64(-1)
    for i in range(indices.size):
        gap, filled = np.int64(0), 0
        while True:
            if at >= body.size:
                return _TRUNCATED
            byte = np.int64(body[at])
            at += 1
            gap |= (byte & 127) << filled
            filled += 7
            if byte < 128:
                if not byte and filled > 7:
                    return _LONG
                break
            if filled > 28:
                return _BEYOND
        last += 1 + gap
        if last >= size:
            return _BEYOND
        indices[i] = last
    return _PADDING if at < body.size else 0
