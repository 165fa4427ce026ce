"""A state array on disk: one float32 vector of the model's size, read and written by chunks, never whole."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from muster.errors import StorageError
from muster.files.disk import storage_error
from muster.files.folders import private_file


class StateReader:
    """The array in `path`, or zeros if there is none yet. Raises `StorageError` `peer.state_malformed`."""

    def __init__(self, path: Path | None, size: int) -> None:
        self._fd = None
        self.fresh = path is None
        if path is None:
            return
        try:
            self._fd = os.open(path, os.O_RDONLY)
            found = os.fstat(self._fd).st_size
        except OSError as error:
            raise _malformed(path, str(error)) from error
        if found != 4 * size:
            self.close()
            raise _malformed(path, f"it has {found} bytes and the model needs {4 * size}")
        self._path = path

    def read(self, start: int, stop: int) -> Tensor:
        """Coordinates [start, stop), a copy of the caller's own."""
        chunk = torch.zeros(stop - start, dtype=torch.float32)
        if self._fd is not None:
            view = chunk.numpy().data.cast("B")
            if os.preadv(self._fd, [view], 4 * start) != len(view):
                raise _malformed(self._path, f"it ends before coordinate {stop}")
        return chunk

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class StateWriter:
    """A new file, its chunks written in any order and by any thread. Raises `StorageError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            descriptor = private_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except OSError as error:
            raise storage_error(path, error) from error
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, chunk: Tensor, start: int) -> None:
        """Coordinates [start, start + c)."""
        rest, at = chunk.contiguous().numpy().data.cast("B"), 4 * start
        try:
            while rest:
                done = os.pwrite(self._file.fileno(), rest, at)
                rest, at = rest[done:], at + done
        except OSError as error:
            raise storage_error(self.path, error) from error

    def finish(self) -> None:
        """Makes the file durable."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(self.path, error) from error

    def close(self) -> None:
        self._file.close()


def _malformed(path: Path, what: str) -> StorageError:
    return StorageError(
        "peer.state_malformed",
        f"the state file {path} is not what this peer wrote: {what}",
        cause="the disk lost it, or the task's model changed during the run",
        fix="remove this peer's data folder to start without state, and check the disk",
    )
