"""Content-addressed files: a blob is complete and checked from the moment it can be found.

Every blob has a path, since what reads it (aggregation, worker processes, a transfer that resumes) maps files.
`FolderBlobStore` keeps blobs on a disk, durably; `MemoryBlobStore` in memory for a simulation, in a temporary folder on
a file system that lies in memory.

A row that names a digest is written after `adopt`, never before; what a crash leaves between the two is an orphan,
which `sweep` removes at the next start.

Disks lose bits: code that reads a blob to make something durable uses `verified`, which reads it once and
compares. One that has changed is kept apart, so that it is never taken for the right one again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
import uuid
from collections import OrderedDict
from collections.abc import Container
from pathlib import Path
from typing import Protocol

from muster.errors import StorageError
from muster.files.digests import checked_digest, digest_file
from muster.files.disk import disk_threads, replace_durably, storage_error, sync_folder
from muster.files.folders import private_folder

LOST = frozenset({"blob.missing", "blob.damaged"})  # ids of errors that waiting does not mend
VERIFIED_SECONDS = 60.0  # so long a file that has not been written to since counts as verified
_VERIFIED_MAX = 1024  # files that are remembered as verified

_Signature = tuple[int, int, int]  # inode, size, time of the last change


class BlobStore(Protocol):
    """Blocking, but for `adopt` and `verified`, which take long enough to matter on an event loop.

    Raises `StorageError` ("storage.disk_full", "storage.failed"), and `UsageError` "blob.digest_malformed"
    for any name that is no digest, so that none from outside becomes a path.
    """

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        ...

    def has(self, digest: str) -> bool: ...

    async def verified(self, digest: str, *, afresh: bool = False) -> Path:
        """The blob's path, once its bytes have been found to be those that its digest names.

        A file that was verified within `VERIFIED_SECONDS` and has not been written to since is not read again, unless
        `afresh`. Raises `StorageError` "blob.missing", or "blob.damaged" and then the file is kept apart.
        """
        ...

    def verify(self, digest: str, afresh: bool = True) -> Path:
        """As `verified`, blocking."""
        ...

    def temporary(self) -> Path:
        """A new, unused path for a file to be written and then adopted."""
        ...

    async def adopt(self, path: Path, digest: str) -> Path:
        """Takes over a complete file whose digest the caller has checked. Returns the blob's path when it is kept as
        durably as the store keeps anything. A blob that is there already stays, and `path` is removed: adopting twice
        is adopting once.
        """
        ...

    def remove(self, digest: str) -> None:
        """No error if it is not there. Open files and maps of it stay valid."""
        ...

    def sweep(self, keep: Container[str]) -> int:
        """Removes every blob whose digest is not in `keep`, and everything temporary; tells how many files.

        For the start of a process, before anything is written.
        """
        ...


class FolderBlobStore(BlobStore):
    """Durable on a disk; `adopt` takes files of the same file system.

    root/ab/ab12...      a blob, under its BLAKE3 digest
    root/temporary/...   files being written
    root/damaged/...     files whose bytes no longer have the digest that names them, kept apart
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "temporary"
        self._damaged = root / "damaged"
        self._verified: OrderedDict[str, tuple[_Signature, float]] = OrderedDict()
        try:
            private_folder(root)
            private_folder(self._temporary)
        except OSError as error:
            raise storage_error(self._temporary, error) from error

    def path(self, digest: str) -> Path:
        return self._root / checked_digest(digest)[:2] / digest

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    async def verified(self, digest: str, *, afresh: bool = False) -> Path:
        return await asyncio.get_running_loop().run_in_executor(disk_threads(), self.verify, digest, afresh)

    def verify(self, digest: str, afresh: bool = True) -> Path:
        path = self.path(digest)
        signature = (0, 0, 0)
        try:
            signature = _signature(path)
            before, at = self._verified.get(digest, (None, 0.0))
            if not afresh and before == signature and time.monotonic() - at < VERIFIED_SECONDS:
                return path
            right = digest_file(path) == digest
        except FileNotFoundError:
            raise StorageError(
                "blob.missing",
                f"{path} is gone",
                cause="it was removed, or the file system lost it",
                fix="put it back from a backup; it is found there again",
            ) from None
        except OSError:  # the disk cannot read it, which is one way of losing it
            right = False
        if not right:
            self._keep_apart(digest)
            raise StorageError(
                "blob.damaged",
                f"{path} has other bytes than were stored",
                cause=f"the disk has lost or changed some; what is left lies in {self._damaged}",
                fix="put it back from a backup, and check the disk",
            )
        self._verified[digest] = (signature, time.monotonic())
        while len(self._verified) > _VERIFIED_MAX:
            self._verified.popitem(last=False)
        return path

    def _keep_apart(self, digest: str) -> None:
        self._verified.pop(digest, None)
        try:
            self._damaged.mkdir(mode=0o700, exist_ok=True)
            self.path(digest).replace(self._damaged / digest)
        except OSError as error:
            raise storage_error(self.path(digest), error) from error

    def temporary(self) -> Path:
        return self._temporary / uuid.uuid4().hex

    async def adopt(self, path: Path, digest: str) -> Path:
        return await asyncio.get_running_loop().run_in_executor(disk_threads(), self._adopt, path, digest)

    def remove(self, digest: str) -> None:
        self._verified.pop(digest, None)
        self.path(digest).unlink(missing_ok=True)
        (self._damaged / digest).unlink(missing_ok=True)

    def sweep(self, keep: Container[str]) -> int:
        removed = 0
        for folder in self._root.iterdir():
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                if folder == self._temporary or path.name not in keep:
                    path.unlink()
                    removed += 1
        return removed

    def _adopt(self, path: Path, digest: str) -> Path:
        target = self.path(digest)
        try:
            if target.exists() and not path.exists():
                return target  # an adoption that was asked for twice
            if not target.parent.exists():
                target.parent.mkdir(mode=0o700, exist_ok=True)
                sync_folder(self._root)
            replace_durably(path, target)
        except OSError as error:
            raise storage_error(path, error) from error
        return target


class MemoryBlobStore(FolderBlobStore):
    """In memory, for a simulation: nothing is synced, no thread is asked, and `close` removes all of it.

    Its folder lies in `/dev/shm` where there is one (the paths then name memory), else among the machine's temporary
    files. Files are adopted from any file system.
    """

    def __init__(self) -> None:
        memory = Path("/dev/shm")  # made there by mkdtemp, for this user alone
        usable = memory.is_dir() and os.access(memory, os.W_OK)
        self._folder = tempfile.TemporaryDirectory(prefix="muster-blobs-", dir=memory if usable else None)
        super().__init__(Path(self._folder.name))

    async def verified(self, digest: str, *, afresh: bool = False) -> Path:
        return self.verify(digest, afresh)

    async def adopt(self, path: Path, digest: str) -> Path:
        target = self.path(digest)
        try:
            if target.exists() and not path.exists():
                return target
            target.parent.mkdir(mode=0o700, exist_ok=True)
            shutil.move(path, target)
        except OSError as error:
            raise storage_error(path, error) from error
        return target

    def close(self) -> None:
        self._folder.cleanup()


def _signature(path: Path) -> _Signature:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
