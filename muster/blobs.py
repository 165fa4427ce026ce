"""Content-addressed files: a blob is complete, checked and durable from the moment it can be found.

    root/ab/ab12...      a blob, under its BLAKE3 digest
    root/temporary/...   files being written

A database row that names a digest is written after `adopt`, never before; what a crash leaves between the two
is an orphan, which `sweep` removes at the next start.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Container
from pathlib import Path

from muster.digests import checked_digest
from muster.disk import disk_threads, replace_durably, storage_error, sync_folder


class BlobStore:
    """Blocking, but for `adopt`, whose syncs take long enough to matter on an event loop.

    Raises `StorageError` ("storage.disk_full", "storage.failed"), and `UsageError` "blob.digest_malformed"
    for any name that is no digest, so that none from outside becomes a path.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "temporary"
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self._temporary, error) from error

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        return self._root / checked_digest(digest)[:2] / digest

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def temporary(self) -> Path:
        """A path of its own for a file to be written and then adopted; nothing is there yet."""
        return self._temporary / uuid.uuid4().hex

    async def adopt(self, path: Path, digest: str) -> Path:
        """Takes over a complete file whose digest the caller has checked, from anywhere on the same file
        system.

        Returns the blob's path when it would survive a power cut. A blob that is there already stays, and
        `path` is removed: adopting twice is adopting once.
        """
        return await asyncio.get_running_loop().run_in_executor(disk_threads(), self._adopt, path, digest)

    def remove(self, digest: str) -> None:
        """No error if it is not there. Open files and maps of it stay valid."""
        self.path(digest).unlink(missing_ok=True)

    def sweep(self, keep: Container[str]) -> int:
        """Removes every blob whose digest is not in `keep`, and everything temporary; tells how many files.

        For the start of a process, before anything is written.
        """
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
                target.parent.mkdir(exist_ok=True)
                sync_folder(self._root)
            replace_durably(path, target)
        except OSError as error:
            raise storage_error(path, error) from error
        return target
