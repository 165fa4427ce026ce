"""Folders and files that only this user may read: secrets, stores, and what is made from a site's data.

Whatever the umask, a folder that Muster makes is its user's alone (0700), and so are the files in which secrets may
lie (0600). An existing folder that others may look into is narrowed, unless it is plainly meant to be shared.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

import structlog

log = structlog.get_logger()

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_folder(folder: Path) -> None:
    """Makes the folder, with its parents, or narrows the one that is there. Raises `OSError`."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if not mode & _OTHERS:
        return
    if why := _shared(folder, found):
        log.warning(
            "folder.shared",
            folder=str(folder),
            mode=f"{mode:o}",
            reason=f"others may look into {folder}: it is left as it is, since {why}; what Muster keeps in it is in "
            "files and folders of its user's alone. Better give it a folder of its own (data_dir)",
        )
        return
    folder.chmod(mode & ~_OTHERS)
    log.info("folder.narrowed", folder=str(folder), before=f"{mode:o}", after=f"{mode & ~_OTHERS:o}")


def private_file(path: Path, flags: int) -> int:
    """Opens as `os.open` does; a file that it makes, or that was made wider, is its user's alone."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(descriptor)
        if stat.S_IMODE(found.st_mode) & _OTHERS and found.st_uid == os.geteuid():
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_private(path: Path, data: bytes) -> None:
    """Replaces what is there."""
    with os.fdopen(private_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(data)


def append_private(path: Path) -> BinaryIO:
    """Opens a file of mode 0600 to append to, made if it does not exist."""
    return os.fdopen(private_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def private_database(path: Path) -> None:
    """An SQLite file to be opened, and those beside it. Those that SQLite makes later take the mode of the first."""
    os.close(private_file(path, os.O_RDWR | os.O_CREAT))
    for suffix in ("-wal", "-shm", "-journal"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            os.close(private_file(beside, os.O_RDWR))


def _shared(folder: Path, found: os.stat_result) -> str:
    """Why it is not ours to narrow; empty if it is."""
    if found.st_uid != os.geteuid():
        return "it belongs to another user"
    if found.st_mode & stat.S_ISVTX:
        return "it is a folder for everybody, such as /tmp"
    if found.st_mode & stat.S_ISGID:
        return "it is set up for a group"
    if folder.resolve() == Path("/"):
        return "it is the root of all folders"
    return ""
