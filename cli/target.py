"""Where a command leaves a file: checked, and asked about, before any work is done for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cli.output import confirm
from cli.settings import Settings
from muster.errors import StorageError
from muster.files.disk import shorten


def target(settings: Settings, asked: Path | None, default: str) -> Path:
    """The file to be written: `asked`, or `default` in the current folder.

    Raises `StorageError` "cli.not_written" if nothing can be written there, and what `confirm` does where a file is
    there already.
    """
    path = Path(default) if asked is None else asked
    try:
        _check(path, default)
        if path.exists():
            confirm(settings, f"{shorten(path)} is there already. Overwrite it?")
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL in it
        raise _not_written(path, getattr(error, "strerror", None) or str(error)) from error
    return path


def _check(path: Path, default: str) -> None:
    if path.is_dir():
        raise _not_written(path, "it is a folder", f"-o {path / Path(default).name}")
    if not path.parent.exists():
        raise _not_written(path, f"there is no folder {shorten(path.parent)}", f"mkdir -p {path.parent}")
    if not path.parent.is_dir():
        raise _not_written(path, f"{shorten(path.parent)} is a file, not a folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise _not_written(path, f"this user may not write to {shorten(path.parent)}")


def beside(path: Path, ending: str) -> Path:
    """A hidden file in the same folder, for what is not whole yet; its name is never too long where that of `path` is
    not."""
    return path.with_name(f".{path.name[:40]}.{ending}")


def written(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a file in the same folder, syncs it and renames it: `path` appears whole or not at all.

    Raises `StorageError` "cli.not_written", and what `write` raises; the other file is gone then.
    """
    partial = beside(path, "new")
    try:
        write(partial)
        fd = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):  # what could not be made can neither be removed
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _not_written(path, error.strerror or str(error)) from error
        raise


def _not_written(path: Path, cause: str, fix: str = "give another file with -o") -> StorageError:
    return StorageError("cli.not_written", f"cannot write {shorten(path)}", cause=cause, fix=fix)
