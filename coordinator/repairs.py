"""Model versions whose file is lost on this disk, brought back from a peer that holds them.

A version is named by the digest of its bytes, so it does not matter which peer sends it, or whether that one lies
otherwise. Updates and the server's states are on no other machine: where one of those is lost, the round says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from coordinator.background import Background
from coordinator.engine.state import RunWarned
from coordinator.rpc.offers import SessionBook
from coordinator.runs import Runs
from muster.errors import StateError, StorageError, TransferError
from muster.files.blobs import LOST, BlobStore
from muster.transfer.partial import PartialBody
from protos.v1.tensors_pb2 import BlobHeader, Chunk

log = structlog.get_logger()

ANSWER_SECONDS_MAX = 10.0  # a peer that holds the version has begun to send it within this
BYTES_A_SECOND_MIN = 1 << 20  # at which the whole version has come in time, from whomever
SENDERS_MAX = 3  # at once, so that one which lies or drips holds up nobody
PAUSE_SECONDS = 60.0  # a version that nobody could give is not asked for again so soon


@dataclass
class _Wanted:
    """A version that somebody waits for, until `due`. `moved` is set when a sender begins and when one ends."""

    size_bytes: int
    due: float  # on the loop's clock
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    senders: set[str] = field(default_factory=set[str])
    tried: set[str] = field(default_factory=set[str])


class Repairs:
    """Brings lost versions back from peers."""

    def __init__(
        self, *, runs: Runs, blobs: BlobStore, sessions: SessionBook, background: Background
    ) -> None:
        self._runs = runs
        self._blobs = blobs
        self._sessions = sessions
        self._background = background
        self._wanted: dict[str, _Wanted] = {}  # by digest
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._refused_until: dict[str, float] = {}

    async def model(self, run_id: str, digest: str, size_bytes: int, *, afresh: bool = False) -> Path:
        """The path of a version whose bytes are as they were stored, fetched from a peer if they are not.

        Raises `StorageError` "blob.missing" or "blob.damaged" if no peer that is connected has it either.
        """
        blobs = self._blobs
        try:
            return await blobs.verified(digest, afresh=afresh)
        except StorageError as error:
            if error.id not in LOST:
                raise
            log.warning("blob.lost", run_id=run_id, digest=digest, reason=str(error))
            await self._fetched(run_id, digest, size_bytes)
            if not blobs.has(digest):
                raise StorageError(
                    error.id,
                    f"{error.message}, and no connected peer holds it",
                    cause=error.cause,
                    fix=error.fix,
                ) from error
        return blobs.path(digest)

    async def receive(self, peer_id: str, header: BlobHeader, chunks: AsyncIterator[Chunk]) -> None:
        """Takes a version that was asked for. Raises `StateError` "model.not_wanted" for any other, from a peer that
        has tried before, and while `SENDERS_MAX` others are sending it."""
        wanted = self._wanted.get(header.digest)
        if wanted is None or peer_id in wanted.tried or header.size_bytes != wanted.size_bytes:
            raise _not_wanted()
        if len(wanted.senders) >= SENDERS_MAX:
            raise _not_wanted()
        wanted.senders.add(peer_id)
        wanted.tried.add(peer_id)
        wanted.moved.set()
        try:
            async with asyncio.timeout_at(wanted.due):
                await self._take(header, chunks)
            log.info("blob.restored", digest=header.digest, peer_id=peer_id)
        except TimeoutError:
            raise TransferError("transfer.stalled", "the version did not come in time") from None
        finally:
            wanted.senders.discard(peer_id)
            wanted.moved.set()

    async def _take(self, header: BlobHeader, chunks: AsyncIterator[Chunk]) -> None:
        blobs = self._blobs
        path = blobs.temporary()
        body = await asyncio.to_thread(PartialBody.open, path, header)
        try:
            async for chunk in chunks:
                if blobs.has(header.digest):  # another peer was quicker
                    raise _not_wanted()
                await body.write(chunk)
            await body.complete()
            await body.flush()
            await blobs.adopt(path, header.digest)
        finally:
            body.remove()

    async def _fetched(self, run_id: str, digest: str, size_bytes: int) -> None:
        """Returns when the version is there or nobody can be found who gives it. One search serves all who wait."""
        if self._refused_until.get(digest, 0.0) > asyncio.get_running_loop().time():
            return
        task = self._fetching.get(digest)
        if task is None:
            task = self._background.spawn(self._search(run_id, digest, size_bytes))
            self._fetching[digest] = task
            task.add_done_callback(lambda _: self._fetching.pop(digest, None))
        await asyncio.shield(task)

    async def _search(self, run_id: str, digest: str, size_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + ANSWER_SECONDS_MAX + size_bytes / BYTES_A_SECOND_MIN
        wanted = self._wanted[digest] = _Wanted(size_bytes=size_bytes, due=due)
        try:
            while not self._blobs.has(digest) and (left := due - loop.time()) > 0:
                wanted.moved.clear()
                seconds = left if wanted.senders else min(left, ANSWER_SECONDS_MAX)
                if not wanted.senders and not self._sessions.ask_restore(
                    run_id, digest, size_bytes, but=wanted.tried
                ):
                    break  # nobody is left
                if not await _within(wanted.moved, seconds) and not wanted.senders:
                    break  # nobody who was asked holds it
        finally:
            del self._wanted[digest]
        if not self._blobs.has(digest):
            self._refused_until[digest] = loop.time() + PAUSE_SECONDS
            await self._runs.post_surely(
                RunWarned(
                    run_id=run_id,
                    cause=f"version.lost:{digest[:12]}",
                    reason=f"the coordinator has lost its file of the version {digest[:12]}, and no connected peer "
                    "holds it: put it back from a backup, or start a peer that has it",
                )
            )


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _not_wanted() -> StateError:
    return StateError("model.not_wanted", "this version is not (or no longer) asked for")
