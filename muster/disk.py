"""Blocking file work beside the event loop: a few threads of its own, and one meaning for what fails."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from muster.errors import StorageError

_THREADS = 8  # more bodies than this wait for each other, which a disk makes them do anyway
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@cache
def disk_threads() -> ThreadPoolExecutor:
    """Apart from asyncio's default pool, so that long jobs there never hold up the bytes of a transfer."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="muster-disk")


def storage_error(path: Path, error: OSError) -> StorageError:
    """`storage.disk_full`, or `storage.failed` for every other reason."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageError(
            "storage.disk_full",
            f"no space left for {path}",
            cause=reason,
            fix=f"free space on that disk (df -h {path.parent}); what was interrupted goes on by itself",
        )
    return StorageError(
        "storage.failed",
        f"cannot read or write {path}",
        cause=reason,
        fix="check the disk and the permissions",
    )


def sync_file(path: Path) -> None:
    """Returns when the file's bytes are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Returns when the folder's names are on the disk: a rename survives a power cut only after this."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_durably(source: Path, target: Path) -> None:
    """Syncs the file, renames it, syncs the folder: after a crash `target` is whole or is not there."""
    sync_file(source)
    source.replace(target)
    sync_folder(target.parent)
