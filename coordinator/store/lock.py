"""One coordinator for each folder that it writes: data, blobs, spool and database, wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muster.files.folderlock import FolderLock, distinct

LOCK_NAME = "coordinator.lock"
_FIX = "stop that coordinator first, or give this one folders of its own (data_dir, database_url)"


def take_folder(folder: Path) -> FolderLock:
    """Raises `StateError` "store.in_use", or `OSError`."""
    return FolderLock.take(folder, LOCK_NAME, fix=_FIX)


def take_folders(data: Path, parts: Sequence[Path], held: Path | None) -> list[FolderLock]:
    """The data folder and those in it, which may lie elsewhere; all or none. `held` is one that this process has taken
    already."""
    taken: list[FolderLock] = []
    own = [] if held is None else [held]
    try:
        for folder in distinct([*own, data])[len(own) :]:
            taken.append(take_folder(folder))
        for folder in distinct(parts):
            taken.append(FolderLock.take(folder, "", fix=_FIX))
    except BaseException:
        for lock in taken:
            lock.release()
        raise
    return taken
