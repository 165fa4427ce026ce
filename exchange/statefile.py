"""Server optimizer state on disk: one float32 vector of the model's size in a file, read and written by chunks."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor

from muster.files.folders import private_file


class StateReader:
    """A state vector, or zeros where there is none yet. Each `read` gives a chunk of the caller's own."""

    def __init__(self, path: Path | None, size: int) -> None:
        self._fd = None if path is None else os.open(path, os.O_RDONLY)
        self._size = size

    def read(self, start: int, stop: int) -> Tensor:
        chunk = torch.zeros(stop - start, dtype=torch.float32)
        if self._fd is not None:
            view = chunk.numpy().data.cast("B")
            if os.preadv(self._fd, [view], 4 * start) != len(view):
                raise OSError(f"optimizer state ends before coordinate {stop} of {self._size}")
        return chunk

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class StateWriter:
    """Appends chunks in order; `finish` gives the digest."""

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(private_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb")
        self._hasher = blake3()

    def write(self, chunk: Tensor) -> None:
        data = chunk.numpy().data.cast("B")
        self._hasher.update(data)
        self._file.write(data)

    def finish(self) -> str:
        self._file.flush()
        return self._hasher.hexdigest()

    def close(self) -> None:
        self._file.close()
