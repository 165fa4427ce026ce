"""A body that arrives in pieces, over as many connections and process lives as it takes.

Beside the file lies its header (`NAME.header`), which tells what it is a part of. The file's length is what
is held: it is not allocated ahead, so that a killed process leaves a length that is true. After a power cut
the length may cover bytes that never reached the disk; the digest of the whole decides, and a body that fails
it is removed, so that the next attempt starts from nothing.

The event loop checks each chunk (order, size, CRC-32C: 40 us for 1 MiB) and hands it to a thread, which
writes and hashes while the next ones arrive. At most `BACKLOG_BYTES` wait to be written; beyond that `write`
waits for the disk, flow control holds the sender, and memory stays bounded. Every `SYNC_BYTES` a sync is
started; it runs in parallel with the writing, and the writing waits for it only when it falls a whole `SYNC_BYTES`
behind.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from blake3 import blake3
from google.protobuf.message import DecodeError

from muster.errors import OffsetError, StorageError, TransferError
from muster.files.digests import CHUNK_BYTES, checksum
from muster.files.disk import disk_threads, storage_error
from muster.files.folders import write_private
from protos.v1.tensors_pb2 import BlobHeader, Chunk

BACKLOG_BYTES = 2 << 20
_BATCH_BYTES = 1 << 20  # what makes a hop to a thread worth its 0.1 ms
SYNC_BYTES = 8 << 20
P = ParamSpec("P")
R = TypeVar("R")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_data_sync = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter


class PartialBody:
    """Made by `open` or `reopen`; one at a time for a path. After an error, only `close` and `remove`."""

    def __init__(self, path: Path, header: BlobHeader, fd: int, *, durable: bool = True) -> None:
        self.path = path
        self._durable = durable
        self.header = header
        self.offset = os.fstat(fd).st_size  # where the next chunk must begin
        self._fd = fd
        self._hasher = blake3()
        self._hashed = 0
        self._written = self.offset
        self._backlog: deque[bytes] = deque()
        self._writing = threading.Lock()  # guards the file, the hasher and the backlog's front
        self._failure: OSError | None = None
        self._job: asyncio.Future[None] | None = None
        self._synced = self.offset
        self._sync: asyncio.Future[None] | None = None

    @classmethod
    def open(cls, path: Path, header: BlobHeader, *, durable: bool = True) -> Self:
        """Goes on with what is held at `path` if it is a part of the same body, else begins anew. Blocking.

        A body that is not `durable` is never synced on the way: it survives this process, not a power cut.

        Raises `TransferError` "transfer.malformed_header", `StorageError`.
        """
        if not _DIGEST.fullmatch(header.digest):
            raise TransferError(
                "transfer.malformed_header",
                f"{header.digest[:80]!r} is not a BLAKE3 digest in lower-case hex",
            )
        try:
            held = _read_header(path)
            if held is None or (held.digest, held.size_bytes) != (header.digest, header.size_bytes):
                path.unlink(missing_ok=True)
                _write_header(path, header)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(fd).st_size > header.size_bytes:
                os.ftruncate(fd, 0)
        except OSError as error:
            raise storage_error(path, error) from error
        body = cls(path, header, fd, durable=durable)
        missing, free = header.size_bytes - body.offset, shutil.disk_usage(path.parent).free
        if missing > free:
            body.remove()
            raise StorageError(
                "storage.disk_full",
                f"no space left for {path}",
                cause=f"{missing} bytes are to come, {free} are free",
                fix=f"free space on that disk (df -h {path.parent}); what was interrupted goes on by itself",
            )
        return body

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Goes on with what is held. Blocking. Raises `FileNotFoundError` if that is nothing."""
        header = _read_header(path)
        if header is None or not path.exists():
            raise FileNotFoundError(path)
        return cls.open(path, header)

    async def write(self, chunk: Chunk) -> None:
        """Takes the next chunk. It is held once `sync` has returned; after a kill, perhaps.

        Raises `OffsetError` "transfer.offset" (field `offset`: where the receiver stands), `TransferError`
        "transfer.oversize", "transfer.chunk_size", "transfer.checksum"; `StorageError` "storage.disk_full"
        and "storage.failed" (the body is then removed, so that others find room).
        """
        data = chunk.data  # once: protobuf makes a copy of it at each look
        self._check(chunk, data)
        self._backlog.append(data)
        self.offset += len(data)
        if self.offset - self._written >= _BATCH_BYTES:
            self._start_writing()
        while self.offset - self._written > BACKLOG_BYTES:
            await self._one_job()
        await self._sync_now_and_then()

    async def flush(self) -> None:
        """Returns when everything taken is in the file: it survives this process, if not a power cut. Raises as
        `write` does."""
        while self._written < self.offset:
            await self._one_job()
        self._raise_failure()

    async def sync(self) -> None:
        """Returns when everything taken is on the disk. Raises as `write` does."""
        await self.flush()
        await _run(self._sync_data, os.dup(self._fd))
        self._raise_failure()
        self._synced = self._written

    async def complete(self) -> None:
        """Verifies that the body is whole and the one that its header tells. It is in the file; whoever needs it on
        the disk syncs it (`FolderBlobStore.adopt` does).

        Raises `TransferError` "transfer.truncated" (what is held stays), "transfer.digest" (it is removed).
        """
        if self.offset < self.header.size_bytes:
            raise TransferError(
                "transfer.truncated",
                f"{self.offset} of {self.header.size_bytes} bytes have come",
                fix="resume from the offset that is held",
                offset=self.offset,
            )
        await self.flush()
        digest = await _run(self._digest)
        if digest != self.header.digest:
            self.remove()
            raise TransferError(
                "transfer.digest",
                f"the body's digest is {digest[:16]}…, its header says {self.header.digest[:16]}…",
                cause="bytes were changed on the way or on a disk, or the sender's file is another one",
                fix="send it again from the start",
            )

    def close(self) -> None:
        """Keeps what has come; writes what still waits to be written. Twice is once."""
        with self._writing:
            self._write_backlog()
            self._close()

    def remove(self) -> None:
        """Closes, and keeps nothing."""
        with self._writing:
            self._backlog.clear()
            self._close()
        self.path.unlink(missing_ok=True)
        _header_path(self.path).unlink(missing_ok=True)

    # -- on the event loop -----------------------------------------------------------------------------------

    def _check(self, chunk: Chunk, data: bytes) -> None:
        size = len(data)
        if chunk.offset != self.offset:
            raise OffsetError(
                "transfer.offset",
                f"a chunk begins at {chunk.offset}, the receiver stands at {self.offset}",
                fix="resume from the receiver's offset",
                offset=self.offset,
            )
        if not 0 < size <= CHUNK_BYTES:
            raise TransferError(
                "transfer.chunk_size", f"a chunk has {size} bytes; it must have 1 to {CHUNK_BYTES}"
            )
        if self.offset + size > self.header.size_bytes:
            raise TransferError(
                "transfer.oversize", f"more than the {self.header.size_bytes} bytes that the header tells"
            )
        if checksum(data) != chunk.crc32c:
            raise TransferError(
                "transfer.checksum",
                f"the chunk at {chunk.offset} was changed on the way",
                fix="resume from the receiver's offset",
                offset=self.offset,
            )

    def _start_writing(self) -> None:
        self._raise_failure()
        if self._job is None or self._job.done():
            self._job = _run(self._carry_out)

    async def _one_job(self) -> None:
        self._start_writing()
        assert self._job is not None
        await asyncio.shield(self._job)  # a caller that is cancelled leaves the thread at its work
        self._raise_failure()

    async def _sync_now_and_then(self) -> None:
        if not self._durable:
            return
        behind = self._written - self._synced
        if self._sync is not None and behind >= 2 * SYNC_BYTES:
            await asyncio.shield(self._sync)
        if behind >= SYNC_BYTES and (self._sync is None or self._sync.done()):
            self._synced = self._written
            self._sync = _run(self._sync_data, os.dup(self._fd))

    def _raise_failure(self) -> None:
        """After a failed sync the kernel takes the lost pages for clean, and after a failed write the disk is
        full: in neither case is what is held worth keeping."""
        if self._failure is not None:
            self.remove()
            raise storage_error(self.path, self._failure)

    # -- on a thread -----------------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        with self._writing:
            self._write_backlog()

    def _sync_data(self, fd: int) -> None:
        """`fd` is a duplicate, so that the body may be closed meanwhile."""
        try:
            _data_sync(fd)
        except OSError as error:
            self._failure = error
        finally:
            os.close(fd)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write_backlog(self) -> None:
        while self._backlog and self._failure is None and self._fd >= 0:
            data = self._backlog[0]
            try:
                self._catch_up()
                _write_all(self._fd, data, self._written)
            except OSError as error:
                self._failure = error
                return
            self._hasher.update(data)
            self._hashed += len(data)
            self._written += len(data)
            self._backlog.popleft()

    def _catch_up(self) -> None:
        """Hashes what was held before this object was made."""
        while self._hashed < self._written:
            block = os.pread(self._fd, min(CHUNK_BYTES, self._written - self._hashed), self._hashed)
            if not block:
                raise OSError(f"{self.path} has become shorter")
            self._hasher.update(block)
            self._hashed += len(block)

    def _digest(self) -> str:
        with self._writing:
            try:
                self._catch_up()
            except OSError as error:
                raise storage_error(self.path, error) from error
            return self._hasher.hexdigest()


def _run(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
    return asyncio.get_running_loop().run_in_executor(disk_threads(), partial(work, *args, **kwargs))


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _header_path(path: Path) -> Path:
    return path.with_name(path.name + ".header")


def _read_header(path: Path) -> BlobHeader | None:
    try:
        return BlobHeader.FromString(_header_path(path).read_bytes())
    except (FileNotFoundError, DecodeError):
        return None


def _write_header(path: Path, header: BlobHeader) -> None:
    fresh = path.with_name(path.name + ".header.tmp")
    write_private(fresh, header.SerializeToString())
    fresh.replace(_header_path(path))
