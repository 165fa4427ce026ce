"""One coordinator for one data folder: an advisory lock that the kernel drops with the process that holds
it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from muster.errors import StateError

LOCK_NAME = "coordinator.lock"


class FolderLock:
    """Held from `take` to `release`. The file stays: removing it would let two processes lock two files of
    one name."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Raises `StateError` "store.in_use", or `OSError` where the folder cannot be written to."""
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StateError(
                "store.in_use",
                f"the data folder {folder} is in use",
                cause=f"process {holder or 'unknown'} holds {LOCK_NAME}",
                fix="stop that coordinator first, or give this one a data folder of its own",
                pid=holder,
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        os.close(self._descriptor)
