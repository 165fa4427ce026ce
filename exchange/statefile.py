"""A state vector on disk: one vector in a file, read and written by chunks, never whole.

Optimizers, feedbacks, momenta, links and stateful rules keep such vectors, of float32, from round to round, on both
sides; what is kept of an algorithm's groups may be float64 or int64.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from muster.errors import StorageError
from muster.files.disk import storage_error
from muster.files.folders import private_file
from muster.files.hashedfile import HashedFile


class StateReader:
    """The vector [size] in `path`, or zeros if there is none yet. Raises `StorageError` "state.malformed"."""

    def __init__(self, path: Path | None, size: int, dtype: torch.dtype = torch.float32) -> None:
        self._fd = None
        self._dtype = dtype
        self.fresh = path is None
        if path is None:
            return
        try:
            self._fd = os.open(path, os.O_RDONLY)
            found = os.fstat(self._fd).st_size
        except OSError as error:
            raise _malformed(path, str(error)) from error
        if found != dtype.itemsize * size:
            self.close()
            raise _malformed(path, f"it has {found} bytes and the model needs {dtype.itemsize * size}")
        self._path = path

    def read(self, start: int, stop: int) -> Tensor:
        """Coordinates [start, stop), a copy of the caller's own."""
        chunk = torch.zeros(stop - start, dtype=self._dtype)
        if self._fd is not None:
            view = chunk.numpy().data.cast("B")
            if os.preadv(self._fd, [view], self._dtype.itemsize * start) != len(view):
                raise _malformed(self._path, f"it ends before coordinate {stop}")
        return chunk

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class StateWriter:
    """Replaces the file at `path`, chunk by chunk in order; not synced. Raises `StorageError`."""

    def __init__(self, path: Path) -> None:
        self._file = HashedFile(path)

    def write(self, chunk: Tensor) -> None:
        self._file.write(chunk.contiguous().numpy().data.cast("B"))

    def finish(self) -> str:
        """The file's digest."""
        return self._file.finish().digest

    def close(self) -> None:
        """Closes the file, finished or not; harmless when it is closed already."""
        self._file.close()


class ScatteredStateWriter:
    """A new file, its chunks written in any order and by any thread, made durable. Raises `StorageError`."""

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
        "state.malformed",
        f"the state file {path} is not what was written there: {what}",
        cause="the disk lost it, or the task's model changed during the run",
        fix="check the disk; a peer starts without state once its data folder is removed",
    )
