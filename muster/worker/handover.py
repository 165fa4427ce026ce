"""Files between a daemon and workers of another user, of whom neither writes where the other does.

    DATA_DIR/worker-jobs/ID/        the daemon's; the worker may only pass through it
    DATA_DIR/worker-jobs/ID/0, 1    what it may read, by links, so that the folders where they lie stay closed to it
    DATA_DIR/worker-jobs/ID/made/   the worker's own, for what the job makes

What was made is moved into the daemon's folder before it is looked at: nothing there can be exchanged by a task any
more. It counts only if it is a plain file of that user's, so that no link in its place leads the daemon elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import structlog

from muster.errors import TaskError
from muster.files.disk import disk_threads, storage_error, sync_folder
from muster.worker.user import WorkerUser

log = structlog.get_logger()

FOLDER = "worker-jobs"


class Exchange:
    """Of one job."""

    def __init__(self, folder: Path, user: WorkerUser) -> None:
        self._folder = folder
        self._user = user
        self._made = folder / "made"
        self._lent = 0

    def lend(self, path: str | Path) -> str:
        """Where the worker finds this file, which it may read and not change. Raises `StorageError`."""
        link = self._folder / str(self._lent)
        self._lent += 1
        try:
            os.link(path, link)
            os.chown(link, -1, self._user.gid)
            link.chmod(0o640)
        except OSError as error:
            raise storage_error(Path(path), error) from error
        return str(link)

    def place(self, path: str | Path) -> str:
        """Where the worker makes what is to lie in `path`."""
        return str(self._made / Path(path).name)

    async def take(self, path: str | Path) -> None:
        """Puts what was made at its `place` into `path`, durably. Raises `StorageError`; `TaskError`
        "worker.bad_file" if it is none of the worker's plain files, and then it is removed."""
        await asyncio.get_running_loop().run_in_executor(disk_threads(), self._take, Path(path))

    def _take(self, path: Path) -> None:
        try:
            Path(self.place(path)).rename(path)
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_uid != self._user.uid or found.st_nlink != 1:
                _remove(path, found)
                raise TaskError(
                    "worker.bad_file",
                    f"the job left no plain file of its own for {path.name}",
                    cause="the task's code has put a link, a folder or another user's file in its place",
                    fix="look at what the task does with files; it was not followed",
                )
            os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
            path.chmod(0o600)
            sync_folder(path.parent)
        except OSError as error:
            raise storage_error(path, error) from error


class Handover:
    """`folder` is the daemon's data folder; others may pass through it from then on, to that one folder."""

    def __init__(self, folder: Path, user: WorkerUser) -> None:
        self.user = user
        self.folder = folder.absolute() / FOLDER

    def open(self) -> None:
        """Blocking; removes what a crash has left. Raises `StorageError`."""
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._make(self.folder)
            above = self.folder.parent
            found = above.stat()
            mode = stat.S_IMODE(found.st_mode) | 0o011
            if found.st_uid != os.geteuid() or mode == stat.S_IMODE(found.st_mode):
                return  # whether the workers can pass is seen when they try
            above.chmod(mode)
            log.info(
                "folder.passable", folder=str(above), mode=f"{mode:o}", reason="workers are another user's"
            )
        except OSError as error:
            raise storage_error(self.folder, error) from error

    @contextmanager
    def exchange(self) -> Generator[Exchange]:
        """For one job, on the event loop. Raises `StorageError`."""
        folder = self.folder / uuid.uuid4().hex
        try:
            self._make(folder)
            made = folder / "made"
            made.mkdir(mode=0o700)
            os.chown(made, self.user.uid, self.user.gid)
        except OSError as error:
            raise storage_error(folder, error) from error
        try:
            yield Exchange(folder, self.user)
        finally:  # a task may have left much
            asyncio.get_running_loop().run_in_executor(disk_threads(), shutil.rmtree, folder, True)

    def _make(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        os.chown(folder, -1, self.user.gid)
        folder.chmod(0o710)


def _remove(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()
