"""Model versions whose file is lost on this disk, brought back from a peer that holds them.

A version is named by the digest of its bytes, so it does not matter which peer sends it, or whether that one lies
otherwise. Updates and the server's states are on no other machine: where one of those is lost, the round says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from muster.blobs import LOST
from muster.errors import StateError, StorageError, TransferError
from muster.partial import PartialBody
from protos.v1 import membership_pb2, models_pb2
from protos.v1.tensors_pb2 import BlobHeader

if TYPE_CHECKING:
    from coordinator.service import Coordinator

log = structlog.get_logger()

ANSWER_SECONDS_MAX = 10.0  # a peer that holds the version has begun to send it within this
CHUNK_SECONDS_MAX = 30.0  # a sender that gives no chunk for so long is given up, and the others are asked
SENDERS_MAX = 3  # that are tried one after the other
PAUSE_SECONDS = 60.0  # a version that nobody could give is not asked for again so soon


@dataclass
class _Wanted:
    """A version that somebody waits for. `moved` is set when a sender begins and when one ends."""

    size_bytes: int
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    sender: str = ""
    tried: set[str] = field(default_factory=set[str])


class Repairs:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._wanted: dict[str, _Wanted] = {}  # by digest
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._refused_until: dict[str, float] = {}

    async def model(self, run_id: str, digest: str, size_bytes: int, *, afresh: bool = False) -> Path:
        """The path of a version whose bytes are as they were stored, fetched from a peer if they are not.

        Raises `StorageError` "blob.missing" or "blob.damaged" if no peer that is connected has it either.
        """
        blobs = self._coordinator.blobs
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

    async def receive(
        self, peer_id: str, header: BlobHeader, requests: AsyncIterator[models_pb2.RestoreModelRequest]
    ) -> None:
        """Takes a version that was asked for. Raises `StateError` "model.not_wanted" for any other, and while another
        peer is sending it."""
        wanted = self._wanted.get(header.digest)
        if wanted is None or wanted.sender or header.size_bytes != wanted.size_bytes:
            raise StateError("model.not_wanted", "this version is not (or no longer) asked for")
        wanted.sender = peer_id
        wanted.tried.add(peer_id)
        wanted.moved.set()
        path = self._coordinator.blobs.temporary()
        try:
            body = await asyncio.to_thread(PartialBody.open, path, header)
            try:
                while (message := await _next(requests)) is not None:
                    await body.write(message.chunk)
                await body.complete()
                await body.flush()
                await self._coordinator.blobs.adopt(path, header.digest)
            finally:
                body.remove()
            log.info("blob.restored", digest=header.digest, peer_id=peer_id)
        finally:
            wanted.sender = ""
            wanted.moved.set()

    async def _fetched(self, run_id: str, digest: str, size_bytes: int) -> None:
        """Returns when the version is there or nobody can be found who gives it. One search serves all who wait."""
        if self._refused_until.get(digest, 0.0) > self._coordinator.clock.now():
            return
        task = self._fetching.get(digest)
        if task is None:
            task = self._coordinator.spawn(self._search(run_id, digest, size_bytes))
            self._fetching[digest] = task
            task.add_done_callback(lambda _: self._fetching.pop(digest, None))
        await asyncio.shield(task)

    async def _search(self, run_id: str, digest: str, size_bytes: int) -> None:
        wanted = self._wanted[digest] = _Wanted(size_bytes=size_bytes)
        restore = membership_pb2.Restore(run_id=run_id, digest=digest, size_bytes=size_bytes)
        try:
            while len(wanted.tried) < SENDERS_MAX:
                wanted.moved.clear()
                asked = self._coordinator.sessions.ask(
                    membership_pb2.SessionResponse(restore=restore), but=wanted.tried
                )
                if not asked or not await _within(wanted.moved, ANSWER_SECONDS_MAX):
                    break
                while wanted.sender:
                    wanted.moved.clear()
                    await wanted.moved.wait()
                if self._coordinator.blobs.has(digest):
                    return
        finally:
            del self._wanted[digest]
        self._refused_until[digest] = self._coordinator.clock.now() + PAUSE_SECONDS


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def _next(
    requests: AsyncIterator[models_pb2.RestoreModelRequest],
) -> models_pb2.RestoreModelRequest | None:
    try:
        return await asyncio.wait_for(anext(requests, None), CHUNK_SECONDS_MAX)
    except TimeoutError:
        raise TransferError("transfer.stalled", f"no chunk came for {CHUNK_SECONDS_MAX:.0f} s") from None
