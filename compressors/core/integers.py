"""Integers as they are: int64, little-endian, zstd where that makes them smaller. No codec of a chunk of float32.

Body: one byte, 0 or 1, and behind it the bytes or the zstd frame of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compressors.core.codec import DecodeError
from compressors.core.entropy import Zstd, decompress

SPELLING = "int64+zstd"

_ZSTD = Zstd()


def bytes_max(size: int) -> int:
    """No body of a chunk of this size is longer."""
    return 1 + 8 * size


def encode(values: Tensor) -> bytes:
    """Of a chunk: int64 [c] on the CPU."""
    raw = np.ascontiguousarray(values.numpy()).tobytes()
    framed = _ZSTD.compress(raw)
    return b"\1" + framed if len(framed) < len(raw) else b"\0" + raw


def decode(body: bytes | memoryview, size: int) -> Tensor:
    """int64 [size], from a body that nobody vouches for. Raises `DecodeError`."""
    coding, rest = bytes(body[:1]), body[1:]
    if coding == b"\1":
        rest = decompress(rest, 8 * size)
    elif coding != b"\0":
        raise DecodeError("the body does not begin with 0 or 1")
    if len(rest) != 8 * size:
        raise DecodeError(f"the body holds {len(rest)} bytes where {8 * size} are due")
    return torch.from_numpy(np.frombuffer(rest, dtype="<i8").astype(np.int64))
