"""A file as the chunks in which it travels.

Every message that carries a chunk has it as field 2 (`protos/v1`), so one encoding serves them all:

    12 LENGTH            field 2 of the message: a Chunk of LENGTH bytes
       08 OFFSET         field 1 of the chunk: varint
       12 SIZE DATA      field 2: bytes
       1d CRC            field 3: fixed32, little-endian
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from muster.errors import OffsetError, StorageError
from muster.files.digests import CHUNK_BYTES, checksum
from muster.files.disk import disk_threads, storage_error
from muster.transport.base import Encoded

CHUNK_BYTES_MIN = 16 << 10  # over a kilobyte a second it comes within what a pace allows
_READ_AHEAD_CHUNKS = 1  # read by a thread while the one before is sent


class EncodedChunk(Encoded):
    """A `FetchModelResponse`, `PullModelResponse`, `RestoreModelRequest` or `UploadUpdateRequest` that carries this
    chunk."""

    __slots__ = ("offset", "size")

    def __init__(self, offset: int, data: bytes) -> None:
        self.offset = offset
        self.size = len(data)
        head = b"\x08" + _varint(offset) + b"\x12" + _varint(self.size)
        tail = b"\x1d" + checksum(data).to_bytes(4, "little")
        length = len(head) + self.size + len(tail)
        super().__init__(b"".join((b"\x12", _varint(length), head, data, tail)))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


async def read_chunks(
    path: Path, offset: int, chunk_bytes: int = CHUNK_BYTES, *, stop: int = 0
) -> AsyncGenerator[EncodedChunk, None]:
    """The file from `offset` to its end, or to `stop` unless that is 0, as messages, a thread reading ahead.
    `chunk_bytes` is what a slow line asks for; it is kept within `CHUNK_BYTES_MIN` and `CHUNK_BYTES`, and 0 asks for
    nothing.

    Raises `OffsetError` "transfer.offset" (beyond the end), `StorageError` "storage.failed".
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(path, error) from error
    loop = asyncio.get_running_loop()
    reading: asyncio.Future[list[EncodedChunk]] | None = None
    chunk_bytes = max(CHUNK_BYTES_MIN, min(chunk_bytes or CHUNK_BYTES, CHUNK_BYTES))
    try:
        size = os.fstat(fd).st_size
        if offset > size:
            raise OffsetError(
                "transfer.offset", f"asked for offset {offset} of a body of {size} bytes", offset=size
            )
        size = min(size, stop) if stop else size
        step = _READ_AHEAD_CHUNKS * chunk_bytes
        while offset < size:
            end = min(size, offset + step)
            if reading is None:
                reading = loop.run_in_executor(disk_threads(), _read, path, fd, offset, end)
            chunks = await asyncio.shield(reading)
            offset = end
            if offset < size:
                end = min(size, offset + step)
                reading = loop.run_in_executor(disk_threads(), _read, path, fd, offset, end)
            for chunk in chunks:
                yield chunk
    finally:
        if reading is None:
            os.close(fd)
        else:  # an abandoned read may still be under way
            reading.add_done_callback(lambda read: _close(fd, read))


def _close(fd: int, read: asyncio.Future[list[EncodedChunk]]) -> None:
    os.close(fd)
    if not read.cancelled():
        read.exception()  # nobody else asks for it


def _read(path: Path, fd: int, offset: int, end: int) -> list[EncodedChunk]:
    chunks: list[EncodedChunk] = []
    while offset < end:
        try:
            data = os.pread(fd, min(CHUNK_BYTES, end - offset), offset)
        except OSError as error:
            raise storage_error(path, error) from error
        if not data:
            raise StorageError("storage.failed", f"{path} became shorter while it was read")
        chunks.append(EncodedChunk(offset, data))
        offset += len(data)
    return chunks
