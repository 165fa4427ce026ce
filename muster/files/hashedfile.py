"""Writing a blob once, with its digest. Not synced: `FolderBlobStore.adopt` does that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from muster.files.disk import storage_error
from muster.files.folders import private_file


class BlobInfo(NamedTuple):
    """Size and BLAKE3 digest of a file."""

    size_bytes: int
    digest: str


class BlobFile:
    """Replaces the file at `path`. Raises `StorageError` as `muster.files.disk` has it, and is closed then.

    Unbuffered, since bodies are large and a buffer would tell of a full disk only at the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            descriptor = private_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        except OSError as error:
            raise storage_error(path, error) from error
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.close()
            raise storage_error(self._path, error) from error

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def close(self) -> None:
        self._file.close()


class HashedFile:
    """A `BlobFile` written front to back, its digest made on the way."""

    def __init__(self, path: Path) -> None:
        self._file = BlobFile(path)
        self._hasher = blake3()
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)
        self._size += len(data)
        self._file.write(data)

    def finish(self) -> BlobInfo:
        self.close()
        return BlobInfo(self._size, self._hasher.hexdigest())

    def close(self) -> None:
        self._file.close()
