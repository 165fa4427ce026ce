"""Model versions on this peer: fetched once, shared by the assignments that start from them, kept no longer
than needed.

A version lies in the blob folder under its digest. One that is being fetched lies beside it and is resumed
after a break or a restart. What stays: versions in use, and the newest of each run, since an evaluation and
the next round often start from the same one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from muster.blobs import BlobStore
from protos.v1.membership_pb2 import Assignment

DeadlineAt = Callable[[], float]  # an assignment's deadline, which a new offer may move
Fetch = Callable[[Assignment, Path, DeadlineAt], Awaitable[None]]  # leaves the verified version in the path


class ModelCache:
    def __init__(self, folder: Path, fetch: Fetch) -> None:
        self._blobs = BlobStore(folder / "blobs")
        self._arriving = folder / "arriving"
        self._fetch = fetch
        self._users: Counter[str] = Counter()
        self._newest: dict[str, tuple[int, str]] = {}  # run -> (version, digest)
        self._locks: dict[str, asyncio.Lock] = {}

    async def open(self, wanted: Iterable[str]) -> None:
        """Removes all versions, whole and half, but the wanted digests."""
        await asyncio.to_thread(self._sweep, set(wanted))

    def _sweep(self, wanted: set[str]) -> None:
        self._arriving.mkdir(parents=True, exist_ok=True)
        for path in self._arriving.iterdir():
            if path.name.partition(".")[0] not in wanted:
                path.unlink()
        self._blobs.sweep(wanted)

    @asynccontextmanager
    async def use(self, offer: Assignment, deadline_at: DeadlineAt) -> AsyncGenerator[Path]:
        """The path of the offer's base version, which stays there until the caller is done."""
        digest = offer.base_digest
        self._users[digest] += 1
        try:
            async with self._locks.setdefault(digest, asyncio.Lock()):
                if not self._blobs.has(digest):
                    path = self._arriving / digest
                    await self._fetch(offer, path, deadline_at)
                    await self._blobs.adopt(path, digest)
            self._note_newest(offer)
            yield self._blobs.path(digest)
        finally:
            self._users[digest] -= 1
            self._remove_unused(digest)

    def forget(self, run_id: str) -> None:
        """The run is over."""
        _, digest = self._newest.pop(run_id, (0, ""))
        self._remove_unused(digest)

    def _note_newest(self, offer: Assignment) -> None:
        version, digest = self._newest.get(offer.run_id, (-1, ""))
        if offer.base_version > version:
            self._newest[offer.run_id] = (offer.base_version, offer.base_digest)
            self._remove_unused(digest)
            for path in self._arriving.iterdir():  # of fetches that were given up
                if not self._users[path.name.partition(".")[0]]:
                    path.unlink()

    def _remove_unused(self, digest: str) -> None:
        if not digest or self._users[digest] > 0 or any(digest == kept for _, kept in self._newest.values()):
            return
        del self._users[digest]
        self._locks.pop(digest, None)
        if self._blobs.has(digest):
            self._blobs.remove(digest)
