"""Lengths as bytes: 7 bits in each, low ones first, the high bit set on all but the last (LEB128)."""

from __future__ import annotations

from compressors.core.codec import DecodeError

VARINT_BYTES_MAX = 5
_NUMBER_MAX = 1 << 31


def varint(number: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first; the high bit says that another byte follows."""
    groups = bytearray()
    while number >= 128:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def read_varint(body: memoryview) -> tuple[int, memoryview]:
    """The number, and what is behind it. Raises `DecodeError`."""
    number = 0
    for at, byte in enumerate(body[:VARINT_BYTES_MAX]):
        number |= (byte & 127) << 7 * at
        if byte < 128:
            if (at and not byte) or number >= _NUMBER_MAX:
                break
            return number, body[at + 1 :]
    raise DecodeError("a length is damaged")
