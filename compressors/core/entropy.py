"""Lossless coding of what is packed already: zstd, whose literals are Huffman coded.

A frame is opened only if it tells its size beforehand, and this is one that can be: libraries give a frame that lies
about it as much memory as it asks for, and overlook bytes behind its end.
"""

from __future__ import annotations

import threading

import zstandard

from compressors.core.codec import CodecError, DecodeError

LEVELS = range(1, 20)


class Zstd:
    """zstd as the last part of a composition: `level` 1 to 19."""

    def __init__(self, level: int = 1) -> None:
        if level not in LEVELS:
            raise CodecError(f"zstd has levels from {LEVELS[0]} to {LEVELS[-1]}, not {level}")
        self.spelling = "zstd" if level == 1 else f"zstd:{level}"
        self._level = level
        self._own = threading.local()  # a compressor serves one thread at a time

    def compress(self, raw: bytes) -> bytes:
        compressor = getattr(self._own, "compressor", None)
        if compressor is None:
            compressor = self._own.compressor = zstandard.ZstdCompressor(level=self._level)
        framed: bytes = compressor.compress(raw)
        return framed


def decompress(body: bytes | memoryview, size_max: int) -> bytes:
    """Of one frame and nothing else. Raises `DecodeError`, before it takes more memory than `size_max`."""
    try:
        size = zstandard.frame_content_size(body)
    except zstandard.ZstdError as error:
        raise DecodeError("what should be a zstd frame is none") from error
    if not 0 < size <= size_max:  # nothing is never framed, and behind nothing libraries overlook anything
        raise DecodeError(f"a zstd frame of {size} bytes where {size_max} are due at most")
    try:
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DecodeError("a zstd frame is damaged, or not the only one") from error
