"""Writing a blob once, front to back, with its digest made on the way."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from muster.errors import StorageError


class BlobInfo(NamedTuple):
    size_bytes: int
    digest: str


def write_failed(path: Path, error: OSError) -> StorageError:
    return StorageError(
        "storage.write_failed",
        f"cannot write {path}: {error.strerror or error}",
        cause="the disk is full or the folder cannot be written",
        fix="free space or correct the folder's permissions, then try again",
        path=path,
    )


class HashedFile:
    """Replaces the file at `path`; not synced, `BlobStore.adopt` does that.

    Raises `StorageError` "storage.write_failed".
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hasher = blake3()
        self._size = 0
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise write_failed(path, error) from error

    def write(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)
        self._size += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise write_failed(self._path, error) from error

    def finish(self) -> BlobInfo:
        self.close()
        return BlobInfo(self._size, self._hasher.hexdigest())

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise write_failed(self._path, error) from error
