"""One process for one folder: an advisory lock that the kernel drops with the process that holds it, however that
ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from muster.errors import StateError
from muster.files.folders import private_file


class FolderLock:
    """Held from `take` to `release`. The file stays: removing it would let two processes lock two files of
    one name."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path, name: str, *, error_id: str = "store.in_use", fix: str) -> Self:
        """`name` is the lock's file, in which other tools find who holds it; with "" the folder itself is locked, and
        no file appears in it.

        Raises `StateError`, which names the process that holds it, or `OSError` where the folder cannot be used.
        """
        if name:
            descriptor = private_file(folder / name, os.O_RDWR | os.O_CREAT)
        else:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = (
                os.read(descriptor, 32).decode("ascii", "replace").strip() if name else _holder(descriptor)
            )
            os.close(descriptor)
            raise StateError(
                error_id,
                f"the folder {folder} is in use",
                cause=f"process {holder or 'unknown'} holds {name or 'it'}",
                fix=fix,
                pid=holder,
            ) from None
        if name:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Twice is once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _holder(descriptor: int) -> str:
    """As the kernel knows it; empty where it does not tell."""
    inode = str(os.fstat(descriptor).st_ino)
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    # "1: FLOCK  ADVISORY  WRITE 1234 00:2b:5678 0 EOF"
    locks = (line.split() for line in lines if "FLOCK" in line and "->" not in line)
    return next((fields[4] for fields in locks if fields[5].rpartition(":")[2] == inode), "")


def distinct(folders: Iterable[Path]) -> list[Path]:
    """Without those that are another of them by another name: a process cannot take one lock twice."""
    found: dict[tuple[int, int], Path] = {}
    for folder in folders:
        status = folder.stat()
        found.setdefault((status.st_dev, status.st_ino), folder)
    return list(found.values())
