"""Updates, peer to coordinator: begin, upload, commit.

A body lies in the spool until it is complete, then passes admission, then becomes a blob, then DELIVERED is committed,
and only then the receipt goes out. Killed between any two of these, the peer asks again and finds where it stood.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from coordinator.engine.state import (
    AssignmentProgressed,
    AssignmentState,
    AssignmentStatus,
    RunState,
    UpdateAdmitted,
)
from coordinator.intake.completed_uploads import CompletedUploads
from coordinator.intake.intake import Intake
from coordinator.intake.spool_quota import SpoolQuota
from exchange.facts import UpdateFacts
from muster.errors import (
    NotAllowedError,
    NotFoundError,
    StateError,
    StorageError,
    TransferError,
    UpdateRejected,
)
from muster.transport.base import CallContext, Route
from muster.wire import BEGIN_UPDATE, COMMIT_UPDATE, GET_UPDATE_STATUS, UPLOAD_UPDATE
from muster.work import evaluates
from protos.v1 import updates_pb2 as pb
from protos.v1.membership_pb2 import Credentials
from protos.v1.tensors_pb2 import BlobHeader

if TYPE_CHECKING:
    from coordinator.service import Coordinator


class UpdatesServicer:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._slots = asyncio.Semaphore(coordinator.config.uploads_max)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._whole = CompletedUploads(coordinator.config.uploads_max)
        self._intake = Intake(coordinator, self._whole)
        self._room = SpoolQuota(coordinator)
        # Admitted and in the blob store, while their row waits for a store that refuses at the moment.
        self._admitted: dict[str, UpdateFacts] = {}

    def routes(self) -> list[Route]:
        return [
            Route(method=BEGIN_UPDATE, handle=self.begin_update, caller=self._sender),
            Route(
                method=UPLOAD_UPDATE,
                handle=self.upload_update,
                caller=self._caller,
                present=self._coordinator.is_at_work,
            ),
            Route(method=GET_UPDATE_STATUS, handle=self.get_update_status, caller=self._sender),
            Route(method=COMMIT_UPDATE, handle=self.commit_update, caller=self._sender),
        ]

    # -- calls --------------------------------------------------------------------------------------------------------

    async def begin_update(
        self, request: pb.BeginUpdateRequest, context: CallContext
    ) -> pb.BeginUpdateResponse:
        peer_id = self._peer(request.credentials)
        header = request.header
        # Not while a stream writes the file or a commit reads it: another digest makes it another file.
        async with self._lock(header.assignment_id):
            run, assignment = await self._assignment(header.assignment_id, peer_id)
            if receipt := await self._receipt(assignment, header.digest):
                return pb.BeginUpdateResponse(offset=header.size_bytes, receipt=receipt)
            await self._intake.check_header(self._live(run, assignment), assignment, header)
            if self._admitted_as(header.assignment_id, header.digest):
                return pb.BeginUpdateResponse(offset=header.size_bytes)
            self._room.check(header)
            self._whole.drop(header.assignment_id)
            body = await asyncio.to_thread(self._intake.open, header)
            body.close()
            if assignment.status is not AssignmentStatus.UPLOADING:
                await self._coordinator.post(
                    AssignmentProgressed(
                        run_id=assignment.run_id,
                        assignment_id=assignment.assignment_id,
                        status=AssignmentStatus.UPLOADING,
                    )
                )
            return pb.BeginUpdateResponse(offset=body.offset)

    async def upload_update(
        self, requests: AsyncIterator[pb.UploadUpdateRequest], context: CallContext
    ) -> AsyncIterator[pb.UploadUpdateResponse]:
        first = await anext(requests, None)
        if first is None:
            raise _no_header()
        peer_id = self._caller(first)
        header = first.begin.header
        await self._assignment(header.assignment_id, peer_id)  # nobody waits at somebody else's lock
        # One stream at a time for a body: a retry waits until the broken one has let go of the file, and takes no
        # slot meanwhile.
        async with self._lock(header.assignment_id), self._slots:
            run, assignment = await self._assignment(header.assignment_id, peer_id)
            await self._intake.check_header(self._live(run, assignment), assignment, header)
            with self._room.taken(header):
                offset = await self._receive(requests, header, peer_id)
            yield pb.UploadUpdateResponse(offset=offset)

    async def get_update_status(
        self, request: pb.GetUpdateStatusRequest, context: CallContext
    ) -> pb.GetUpdateStatusResponse:
        peer_id = self._peer(request.credentials)
        _, assignment = await self._assignment(request.assignment_id, peer_id)
        digest = assignment.update.digest if assignment.update else ""
        receipt = await self._receipt(assignment, digest) if digest else None
        return pb.GetUpdateStatusResponse(
            offset=self._coordinator.bytes_held(request.assignment_id),
            receipt=receipt,
            assignment_state=assignment.status.value,
        )

    async def commit_update(
        self, request: pb.CommitUpdateRequest, context: CallContext
    ) -> pb.CommitUpdateResponse:
        peer_id = self._peer(request.credentials)
        async with self._lock(request.assignment_id):
            run, assignment = await self._assignment(request.assignment_id, peer_id)
            if receipt := await self._receipt(assignment, request.digest):
                return pb.CommitUpdateResponse(receipt=receipt)
            live = self._live(run, assignment)
            facts = self._admitted_as(request.assignment_id, request.digest)
            if facts is None:
                facts = await self._intake.admit(live, assignment, request.digest)
            event = UpdateAdmitted(run_id=live.run_id, assignment_id=assignment.assignment_id, update=facts)
            self._admitted.pop(request.assignment_id, None)
            try:
                committed = await self._coordinator.post(event)
            except StorageError:
                self._admitted[request.assignment_id] = facts
                raise
            # The engine has the last word: a deadline may have passed while the body was read.
            _, assignment = await self._assignment(request.assignment_id, peer_id)
            receipt = await self._receipt(assignment, request.digest)
            if receipt is None:
                # No other row can name this blob: an update tells which assignment it is for.
                self._coordinator.blobs.remove(request.digest)
                ended = assignment.status.ended
                raise StateError(
                    "update.too_late",
                    assignment.reason if ended else committed.outcome.reason,
                    cause="the round went on while the update was being checked",
                    fix="drop it; the next round asks again",
                )
            return pb.CommitUpdateResponse(receipt=receipt)

    # -- steps --------------------------------------------------------------------------------------------------------

    async def _receive(
        self, requests: AsyncIterator[pb.UploadUpdateRequest], header: BlobHeader, peer_id: str
    ) -> int:
        """Takes chunks until the stream ends; gives the offset that is held then."""
        count = self._coordinator.journal.count_bytes
        self._whole.drop(header.assignment_id)
        body = await asyncio.to_thread(self._intake.open, header)
        try:
            while (message := await _next_chunk(requests)) is not None:
                # The round may have closed meanwhile: better told now than after the last byte.
                self._live(*await self._assignment(header.assignment_id, peer_id))
                before = body.offset
                await body.write(message.chunk)
                count(header.run_id, header.round, peer_id, "up", body.offset - before)
            await body.flush()
        finally:
            if body.offset == header.size_bytes:
                self._whole.put(header.assignment_id, body)
            else:
                body.close()
        return body.offset

    # -- look-ups -----------------------------------------------------------------------------------------------------

    def _caller(self, first: pb.UploadUpdateRequest) -> str:
        if first.WhichOneof("part") != "begin":
            raise _no_header()
        return self._peer(first.begin.credentials)

    def _sender(
        self, request: pb.BeginUpdateRequest | pb.GetUpdateStatusRequest | pb.CommitUpdateRequest
    ) -> str:
        return self._peer(request.credentials)

    def _peer(self, credentials: Credentials) -> str:
        return self._coordinator.members.authenticate_sender(credentials.peer_id, credentials.secret)

    async def _assignment(self, assignment_id: str, peer_id: str) -> tuple[RunState | None, AssignmentState]:
        run, assignment = await self._coordinator.find_assignment(assignment_id)
        if assignment is None:
            raise NotFoundError("assignment.not_found", f"no assignment {assignment_id!r}")
        if assignment.peer_id != peer_id:
            raise NotAllowedError(
                "assignment.not_yours", f"assignment {assignment_id!r} is not {peer_id!r}'s"
            )
        if evaluates(assignment.work.role):
            raise StateError(
                "update.not_asked", f"assignment {assignment_id!r} evaluates and has no update to deliver"
            )
        return run, assignment

    def _live(self, run: RunState | None, assignment: AssignmentState) -> RunState:
        if run is None or assignment.status.ended:
            if assignment.status is AssignmentStatus.DELIVERED:
                raise UpdateRejected(
                    "update.duplicate",
                    "another update was delivered for this assignment already",
                    fix="drop this one; the one that came first counts",
                )
            raise StateError(
                "update.stale_round",
                f"round {assignment.round} no longer waits for this update: {assignment.reason}",
                fix="drop it; the next round asks again",
            )
        return run

    async def _receipt(self, assignment: AssignmentState, digest: str) -> pb.Receipt | None:
        update = assignment.update
        if assignment.status is not AssignmentStatus.DELIVERED or update is None or update.digest != digest:
            return None
        return pb.Receipt(
            assignment_id=assignment.assignment_id,
            run_id=assignment.run_id,
            round=assignment.round,
            digest=update.digest,
            size_bytes=update.size_bytes,
            event_sequence=await self._coordinator.store.delivered_sequence(assignment.assignment_id),
        )

    def _admitted_as(self, assignment_id: str, digest: str) -> UpdateFacts | None:
        facts = self._admitted.get(assignment_id)
        return facts if facts is not None and facts.digest == digest else None

    def _lock(self, assignment_id: str) -> asyncio.Lock:
        """One for all who ask while somebody holds it or waits for it."""
        return self._locks.setdefault(assignment_id, asyncio.Lock())


def _no_header() -> TransferError:
    return TransferError("transfer.no_header", "an upload must start with its header")


async def _next_chunk(
    requests: AsyncIterator[pb.UploadUpdateRequest],
) -> pb.UploadUpdateRequest | None:
    """The transport cuts off who sends too slowly."""
    return await anext(requests, None)
