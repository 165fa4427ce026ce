"""Blocking file work off the event loop: its own few threads, and one error for each kind of failure."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from muster.errors import StorageError
from muster.files.folders import private_folder

_THREADS = 8  # more bodies than this wait for each other, which a disk makes them do anyway
_SHOWN_MAX = 200  # characters of a path in a message
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@cache
def disk_threads() -> ThreadPoolExecutor:
    """Apart from asyncio's default pool, so that long jobs there never hold up the bytes of a transfer."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="muster-disk")


def is_full(error: OSError) -> bool:
    """Whether the disk, or a quota, has no room left."""
    return error.errno in _FULL


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


def make_folder(folder: Path, setting: str) -> None:
    """Makes the folder and those above it, if it is not there, and keeps it private. `setting` is what names it:
    "coordinator.data_dir".

    Raises `StorageError` "storage.no_folder", which tells what stands in the way, or "storage.disk_full".
    """
    try:
        private_folder(folder)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise storage_error(folder, error) from error
        raise StorageError(
            "storage.no_folder",
            f"the folder {shorten(folder)} cannot be made",
            cause=_obstacle(folder, error),
            fix=f"give another folder ({setting}), or mend that one",
        ) from error


def shorten(path: Path) -> str:
    """The path as text, its middle left out if it is long."""
    text = str(path)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX // 2]}...{text[-_SHOWN_MAX // 2 :]}"


def _obstacle(folder: Path, error: OSError | ValueError) -> str:
    """Why it cannot be made, in words."""
    if isinstance(error, ValueError):
        return str(error)
    if error.errno == errno.ENAMETOOLONG:
        return f"its name is too long, {len(str(folder))} characters"
    above = folder
    while not os.path.lexists(above) and above != above.parent:
        above = above.parent
    if not above.is_dir():
        what = "a link that leads nowhere" if above.is_symlink() and not above.exists() else "a file"
        return f"{above} is {what}, not a folder"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this user may not make folders in {above}"
    if error.errno == errno.EROFS:
        return f"{above} is on a file system that is mounted read-only"
    return f"{above} takes no folders: {error.strerror or error}"


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
