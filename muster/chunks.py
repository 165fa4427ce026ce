"""A file as the chunks in which it travels."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from pathlib import Path

from muster.digests import CHUNK_BYTES, checksum
from muster.disk import disk_threads, storage_error
from muster.errors import OffsetError, StorageError
from protos.v1.tensors_pb2 import Chunk

_READ_AHEAD_CHUNKS = 2  # read by a thread in one go, while the two before are sent


async def read_chunks(path: Path, offset: int) -> AsyncGenerator[Chunk, None]:
    """The file from `offset` to its end, a thread reading ahead.

    Raises `OffsetError` "transfer.offset" (beyond the end), `StorageError` "storage.failed".
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(path, error) from error
    reading: Future[list[Chunk]] | None = None
    try:
        size = os.fstat(fd).st_size
        if offset > size:
            raise OffsetError(
                "transfer.offset", f"asked for offset {offset} of a body of {size} bytes", offset=size
            )
        step = _READ_AHEAD_CHUNKS * CHUNK_BYTES
        while offset < size:
            end = min(size, offset + step)
            if reading is None:
                reading = disk_threads().submit(_read, path, fd, offset, end)
            chunks = await asyncio.wrap_future(reading)
            offset = end
            if offset < size:
                reading = disk_threads().submit(_read, path, fd, offset, min(size, offset + step))
            for chunk in chunks:
                yield chunk
    finally:
        if reading is None:
            os.close(fd)
        else:  # a read that nobody waits for any more may still be under way
            reading.add_done_callback(lambda _: os.close(fd))


def _read(path: Path, fd: int, offset: int, end: int) -> list[Chunk]:
    chunks: list[Chunk] = []
    while offset < end:
        try:
            data = os.pread(fd, min(CHUNK_BYTES, end - offset), offset)
        except OSError as error:
            raise storage_error(path, error) from error
        if not data:
            raise StorageError("storage.failed", f"{path} became shorter while it was read")
        chunks.append(Chunk(offset=offset, data=data, crc32c=checksum(data)))
        offset += len(data)
    return chunks
