"""Updates, peer to coordinator: begin, upload, commit.

A body lies in the spool until it is complete, then passes admission, then becomes a blob, then DELIVERED is committed,
and only then the receipt goes out. Killed between any two of these, the peer asks again and finds where it stood.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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
from coordinator.intake.spool import Spool
from coordinator.intake.spool_quota import SpoolQuota
from coordinator.journal import Journal
from coordinator.lookups import Assignments
from coordinator.membership.members import MemberBook
from coordinator.rpc.convert import updates as convert
from coordinator.runs import Runs
from coordinator.store import Store
from exchange.facts import UpdateFacts
from muster.errors import (
    NotAllowedError,
    NotFoundError,
    StateError,
    StorageError,
    TransferError,
    UpdateRejected,
)
from muster.files.blobs import BlobStore
from muster.transport.base import CallContext, Route
from muster.transport.identity import PEERS, Identity
from muster.wire import BEGIN_UPDATE, COMMIT_UPDATE, GET_UPDATE_STATUS, UPLOAD_UPDATE
from muster.work import evaluates
from protos.v1 import updates_pb2 as pb
from protos.v1.membership_pb2 import Credentials
from protos.v1.tensors_pb2 import BlobHeader


class UpdatesServicer:
    """`muster.v1.UpdatesService`."""

    def __init__(
        self,
        *,
        runs: Runs,
        assignments: Assignments,
        members: MemberBook,
        store: Store,
        blobs: BlobStore,
        spool: Spool,
        quota: SpoolQuota,
        intake: Intake,
        completed: CompletedUploads,
        journal: Journal,
        uploads_max: int,
    ) -> None:
        self._runs = runs
        self._assignments = assignments
        self._members = members
        self._store = store
        self._blobs = blobs
        self._spool = spool
        self._quota = quota
        self._intake = intake
        self._completed = completed
        self._journal = journal
        self._slots = asyncio.Semaphore(uploads_max)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Admitted and in the blob store, while their row waits for a store that refuses at the moment.
        self._admitted: dict[str, UpdateFacts] = {}

    def routes(self) -> list[Route]:
        return [
            Route(method=BEGIN_UPDATE, handle=self.begin_update, allows=PEERS, identify=self._sender),
            Route(
                method=UPLOAD_UPDATE,
                handle=self.upload_update,
                allows=PEERS,
                identify=self._caller,
                present=self._assignments.is_at_work,
            ),
            Route(
                method=GET_UPDATE_STATUS, handle=self.get_update_status, allows=PEERS, identify=self._sender
            ),
            Route(method=COMMIT_UPDATE, handle=self.commit_update, allows=PEERS, identify=self._sender),
        ]

    # -- calls --------------------------------------------------------------------------------------------------------

    async def begin_update(
        self, request: pb.BeginUpdateRequest, context: CallContext
    ) -> pb.BeginUpdateResponse:
        peer_id = context.identity.name
        header = request.header
        # Not while a stream writes the file or a commit reads it: another digest makes it another file.
        async with self._lock(header.assignment_id):
            run, assignment = await self._assignment(header.assignment_id, peer_id)
            if receipt := await self._receipt(assignment, header.digest):
                return pb.BeginUpdateResponse(offset=header.size_bytes, receipt=receipt)
            await self._intake.check_header(self._live(run, assignment), assignment, header)
            if self._admitted_as(header.assignment_id, header.digest):
                return pb.BeginUpdateResponse(offset=header.size_bytes)
            self._quota.check(header)
            self._completed.drop(header.assignment_id)
            body = await asyncio.to_thread(self._intake.open, header)
            body.close()
            if assignment.status is not AssignmentStatus.UPLOADING:
                await self._runs.post(
                    AssignmentProgressed(
                        run_id=assignment.run_id,
                        assignment_id=assignment.assignment_id,
                        status=AssignmentStatus.UPLOADING,
                        actor=context.identity.actor,
                    )
                )
            return pb.BeginUpdateResponse(offset=body.offset)

    async def upload_update(
        self, requests: AsyncIterator[pb.UploadUpdateRequest], context: CallContext
    ) -> AsyncIterator[pb.UploadUpdateResponse]:
        first = await anext(requests, None)
        if first is None:
            raise _no_header()
        peer_id = context.identity.name
        header = first.begin.header
        await self._assignment(header.assignment_id, peer_id)  # nobody waits at somebody else's lock
        # One stream at a time for a body: a retry waits until the broken one has let go of the file, and takes no
        # slot meanwhile.
        async with self._lock(header.assignment_id), self._slots:
            run, assignment = await self._assignment(header.assignment_id, peer_id)
            await self._intake.check_header(self._live(run, assignment), assignment, header)
            with self._quota.taken(header):
                offset = await self._receive(requests, header, peer_id)
            yield pb.UploadUpdateResponse(offset=offset)

    async def get_update_status(
        self, request: pb.GetUpdateStatusRequest, context: CallContext
    ) -> pb.GetUpdateStatusResponse:
        peer_id = context.identity.name
        _, assignment = await self._assignment(request.assignment_id, peer_id)
        digest = assignment.update.digest if assignment.update else ""
        receipt = await self._receipt(assignment, digest) if digest else None
        return pb.GetUpdateStatusResponse(
            offset=self._spool.bytes_held(request.assignment_id),
            receipt=receipt,
            assignment_state=assignment.status.value,
        )

    async def commit_update(
        self, request: pb.CommitUpdateRequest, context: CallContext
    ) -> pb.CommitUpdateResponse:
        peer_id = context.identity.name
        async with self._lock(request.assignment_id):
            run, assignment = await self._assignment(request.assignment_id, peer_id)
            if receipt := await self._receipt(assignment, request.digest):
                return pb.CommitUpdateResponse(receipt=receipt)
            live = self._live(run, assignment)
            facts = self._admitted_as(request.assignment_id, request.digest)
            if facts is None:
                facts = await self._intake.admit(live, assignment, request.digest)
            event = UpdateAdmitted(
                run_id=live.run_id,
                assignment_id=assignment.assignment_id,
                update=facts,
                actor=context.identity.actor,
            )
            self._admitted.pop(request.assignment_id, None)
            try:
                committed = await self._runs.post(event)
            except StorageError:
                self._admitted[request.assignment_id] = facts
                raise
            # The engine has the last word: a deadline may have passed while the body was read.
            if not committed.accepted:
                _, ended = await self._assignment(request.assignment_id, peer_id)
                if receipt := await self._receipt(ended, request.digest):  # by a call that was cut off
                    return pb.CommitUpdateResponse(receipt=receipt)
                # No other row can name this blob: an update tells which assignment it is for.
                self._blobs.remove(request.digest)
                raise _too_late(ended.reason if ended.status.ended else committed.reason)
            sequence = committed.sequence("assignment.delivered", assignment.assignment_id)
            return pb.CommitUpdateResponse(receipt=await self._receipt_of(assignment, facts, sequence))

    # -- steps --------------------------------------------------------------------------------------------------------

    async def _receive(
        self, requests: AsyncIterator[pb.UploadUpdateRequest], header: BlobHeader, peer_id: str
    ) -> int:
        """Takes chunks until the stream ends; gives the offset that is held then."""
        count = self._journal.count_bytes
        self._completed.drop(header.assignment_id)
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
                self._completed.put(header.assignment_id, body)
            else:
                body.close()
        return body.offset

    # -- look-ups -----------------------------------------------------------------------------------------------------

    def _caller(self, first: pb.UploadUpdateRequest) -> Identity:
        if first.WhichOneof("part") != "begin":
            raise _no_header()
        return self._peer(first.begin.credentials)

    def _sender(
        self, request: pb.BeginUpdateRequest | pb.GetUpdateStatusRequest | pb.CommitUpdateRequest
    ) -> Identity:
        return self._peer(request.credentials)

    def _peer(self, credentials: Credentials) -> Identity:
        return Identity.peer(self._members.authenticate_sender(credentials.peer_id, credentials.secret))

    async def _assignment(self, assignment_id: str, peer_id: str) -> tuple[RunState | None, AssignmentState]:
        run, assignment = await self._assignments.find(assignment_id)
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
        return await self._receipt_of(assignment, update)

    async def _receipt_of(
        self, assignment: AssignmentState, update: UpdateFacts, sequence: int | None = None
    ) -> pb.Receipt:
        """`sequence` of the event that delivered it, where it is at hand."""
        if sequence is None:
            sequence = await self._store.delivered_sequence(assignment.assignment_id)
        return convert.receipt(assignment, update, sequence)

    def _admitted_as(self, assignment_id: str, digest: str) -> UpdateFacts | None:
        facts = self._admitted.get(assignment_id)
        return facts if facts is not None and facts.digest == digest else None

    def _lock(self, assignment_id: str) -> asyncio.Lock:
        """One for all who ask while somebody holds it or waits for it."""
        return self._locks.setdefault(assignment_id, asyncio.Lock())


def _too_late(reason: str) -> StateError:
    return StateError(
        "update.too_late",
        reason,
        cause="the round went on while the update was being checked",
        fix="drop it; the next round asks again",
    )


def _no_header() -> TransferError:
    return TransferError("transfer.no_header", "an upload must start with its header")


async def _next_chunk(
    requests: AsyncIterator[pb.UploadUpdateRequest],
) -> pb.UploadUpdateRequest | None:
    """The transport cuts off who sends too slowly."""
    return await anext(requests, None)
