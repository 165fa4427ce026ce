"""Model versions on this peer: fetched once, shared by the assignments that start from them, kept no longer
than needed.

A version lies in a file named by its digest. One that is being fetched lies beside it and is resumed after a
break or a restart. What stays: versions in use, and the newest of each run, since an evaluation and the next
round often start from the same one. Nothing is synced, since all of it can be fetched again; what is found
after a restart is verified before it is used.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from muster.files.digests import checked_digest, digest_file
from muster.files.folders import private_folder
from protos.v1.membership_pb2 import Assignment

DeadlineAt = Callable[[], float]  # an assignment's deadline, which a new offer may move
Fetch = Callable[[Assignment, Path, DeadlineAt], Awaitable[None]]  # leaves the verified version in the path


class ModelCache:
    """Versions that this peer holds, as files."""

    def __init__(self, folder: Path, fetch: Fetch) -> None:
        self._whole = folder / "models"
        self._arriving = folder / "arriving"
        self._fetch = fetch
        self._users: Counter[str] = Counter()
        self._newest: dict[str, tuple[int, str]] = {}  # run -> (version, digest)
        self._beside: dict[str, str] = {}  # run -> digest of what goes with its versions
        self._locks: dict[str, asyncio.Lock] = {}

    async def open(self, wanted: Iterable[str]) -> None:
        """Removes all versions, whole and half, but the wanted digests."""
        await asyncio.to_thread(self._sweep, set(wanted))

    def _sweep(self, wanted: set[str]) -> None:
        for folder in (self._arriving, self._whole):
            private_folder(folder)
            for path in folder.iterdir():
                if path.name.partition(".")[0] not in wanted:
                    path.unlink()
        for path in self._whole.iterdir():
            if digest_file(path) != path.name:
                path.unlink()

    @asynccontextmanager
    async def use(self, offer: Assignment, deadline_at: DeadlineAt) -> AsyncGenerator[Path]:
        """The path of the offer's base version, which stays there until the caller is done."""
        digest = checked_digest(offer.work.base.digest)
        self._users[digest] += 1
        try:
            path = await self._fetched(digest, lambda target: self._fetch(offer, target, deadline_at))
            self._note_newest(offer)
            yield path
        finally:
            self._users[digest] -= 1
            self._remove_unused(digest)

    @asynccontextmanager
    async def newest(self, run_id: str) -> AsyncGenerator[Path | None]:
        """The newest version of the run that is here whole, if there is one; it stays until the caller is
        done."""
        _, digest = self._newest.get(run_id, (0, ""))
        path = self._whole / digest
        if not digest or not path.exists():
            yield None
            return
        self._users[digest] += 1
        try:
            yield path
        finally:
            self._users[digest] -= 1
            self._remove_unused(digest)

    @asynccontextmanager
    async def held(self, digest: str) -> AsyncGenerator[Path | None]:
        """The file of this digest if it is here whole, and its bytes are still those; it stays until the caller is
        done."""
        path = self._whole / checked_digest(digest)
        if not path.exists():
            yield None
            return
        self._users[digest] += 1
        try:
            yield path if await asyncio.to_thread(digest_file, path) == digest else None
        finally:
            self._users[digest] -= 1
            self._remove_unused(digest)

    @asynccontextmanager
    async def companion(self, digest: str, fetch: Callable[[Path], Awaitable[None]]) -> AsyncGenerator[Path]:
        """A file that goes with one version, fetched if need be; it stays until the caller is done."""
        self._users[digest] += 1
        try:
            yield await self._fetched(digest, fetch)
        finally:
            self._users[digest] -= 1
            self._remove_unused(digest)

    async def beside(self, run_id: str, digest: str, fetch: Callable[[Path], Awaitable[None]]) -> Path:
        """A file that goes with the run's versions, fetched if need be; it stays until there is another."""
        self._users[digest] += 1
        try:
            path = await self._fetched(digest, fetch)
            older, self._beside[run_id] = self._beside.get(run_id, ""), digest
        finally:
            self._users[digest] -= 1
        self._remove_unused(older)
        return path

    async def _fetched(self, digest: str, fetch: Callable[[Path], Awaitable[None]]) -> Path:
        """The whole file, fetched if it is not here; by one at a time."""
        path, arriving = self._whole / digest, self._arriving / digest
        async with self._locks.setdefault(digest, asyncio.Lock()):
            if not path.exists():
                await fetch(arriving)
                arriving.replace(path)
        return path

    def forget(self, run_id: str) -> None:
        """The run is over."""
        self._remove_unused(self._beside.pop(run_id, ""))
        _, digest = self._newest.pop(run_id, (0, ""))
        self._remove_unused(digest)

    def _note_newest(self, offer: Assignment) -> None:
        version, digest = self._newest.get(offer.run_id, (-1, ""))
        if offer.work.base.version > version:
            self._newest[offer.run_id] = (offer.work.base.version, offer.work.base.digest)
            self._remove_unused(digest)
            for path in self._arriving.iterdir():  # of fetches that were given up
                if not self._users[path.name.partition(".")[0]]:
                    path.unlink()

    def _remove_unused(self, digest: str) -> None:
        kept = {*(newest for _, newest in self._newest.values()), *self._beside.values()}
        if not digest or self._users[digest] > 0 or digest in kept:
            return
        del self._users[digest]
        self._locks.pop(digest, None)
        (self._whole / digest).unlink(missing_ok=True)
