"""Updates, peer to coordinator: begin, upload, commit.

A body lies in the spool until it is complete, then passes admission, then becomes a blob, then DELIVERED is committed,
and only then the receipt goes out. Killed between any two of these, the peer asks again and finds where it stood.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import structlog

from coordinator.admission import Expected, admit, update_bytes_max
from coordinator.bodies import WholeBodies
from coordinator.engine.state import (
    AssignmentProgressed,
    AssignmentState,
    AssignmentStatus,
    RunState,
    UpdateAdmitted,
    UpdateFacts,
    UpdateRefused,
)
from coordinator.room import Room
from coordinator.store.tables import FACTOR
from muster.errors import (
    NotAllowedError,
    NotFoundError,
    StateError,
    StorageError,
    TransferError,
    UpdateRejected,
)
from muster.transfer import PartialBody
from muster.transport.base import CallContext, Route
from muster.wire import BEGIN_UPDATE, COMMIT_UPDATE, GET_UPDATE_STATUS, UPLOAD_UPDATE
from protos.v1 import updates_pb2 as pb
from protos.v1.membership_pb2 import Credentials
from protos.v1.tensors_pb2 import BlobHeader

if TYPE_CHECKING:
    from coordinator.service import Coordinator

log = structlog.get_logger()

CHUNK_SECONDS_MAX = 30.0  # a sender that gives no chunk for so long is cut off; it may resume


class UpdatesServicer:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._slots = asyncio.Semaphore(coordinator.config.uploads_max)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._whole = WholeBodies(coordinator.config.uploads_max)
        self._room = Room(coordinator)
        # Admitted and in the blob store, while their row waits for a store that refuses at the moment.
        self._admitted: dict[str, UpdateFacts] = {}

    def routes(self) -> list[Route]:
        return [
            Route(method=BEGIN_UPDATE, handle=self.begin_update),
            Route(method=UPLOAD_UPDATE, handle=self.upload_update),
            Route(method=GET_UPDATE_STATUS, handle=self.get_update_status),
            Route(method=COMMIT_UPDATE, handle=self.commit_update),
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
            await self._check_header(self._live(run, assignment), assignment, header)
            if self._admitted_as(header.assignment_id, header.digest):
                return pb.BeginUpdateResponse(offset=header.size_bytes)
            self._room.check(header)
            self._whole.drop(header.assignment_id)
            body = await asyncio.to_thread(self._body, header)
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
        if first is None or first.WhichOneof("part") != "begin":
            raise TransferError("transfer.no_header", "an upload must start with its header")
        peer_id = self._peer(first.begin.credentials)
        header = first.begin.header
        await self._assignment(header.assignment_id, peer_id)  # nobody waits at somebody else's lock
        # One stream at a time for a body: a retry waits until the broken one has let go of the file, and takes no
        # slot meanwhile.
        async with self._lock(header.assignment_id), self._slots:
            run, assignment = await self._assignment(header.assignment_id, peer_id)
            await self._check_header(self._live(run, assignment), assignment, header)
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
                facts = await self._admit(live, assignment, request.digest)
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
        body = await asyncio.to_thread(self._body, header)
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

    async def _admit(self, run: RunState, assignment: AssignmentState, digest: str) -> UpdateFacts:
        """Complete, checked and in the blob store; a rejection is recorded before it is told."""
        coordinator = self._coordinator
        path = self._path(assignment.assignment_id)
        body = self._whole.take(assignment.assignment_id)
        if body is None:
            body = await asyncio.to_thread(_reopen, path)
        try:
            if body.header.digest != digest:
                raise TransferError(
                    "transfer.digest", "the body that is held has another digest than the commit"
                )
            loop = asyncio.get_running_loop()
            await body.complete()
            estimate, factor = await self._beside(run, assignment)
            expected = Expected(
                assignment_id=assignment.assignment_id,
                peer_id=assignment.peer_id,
                run_id=run.run_id,
                round=assignment.round,
                base_version=assignment.base_version,
                base_digest=run.models[assignment.base_version].digest,
                layout=await coordinator.effects.layout(run),
                spec=run.spec,
                estimate=estimate,
                factor=factor,
            )
            facts = await loop.run_in_executor(coordinator.pool, admit, path, digest, expected)
        except UpdateRejected as error:
            body.remove()
            await self._refused(assignment, error)
            raise
        finally:
            body.close()
        await coordinator.blobs.adopt(path, digest)
        body.remove()
        return facts

    async def _beside(self, run: RunState, assignment: AssignmentState) -> tuple[Path | None, Path | None]:
        """What an update against its base version is read with: the peer's estimate and the round's factor, if any."""
        from coordinator import links

        differences, factor = links.sends_differences(run.spec), run.spec.compression.common_factor
        if not (differences or factor):
            return None, None
        blobs = self._coordinator.blobs
        states = await self._coordinator.store.optimizer_states(run.run_id, assignment.base_version)
        held = {name: blobs.path(digest) for name, digest in states.items()}
        estimate = held.get(links.state_name(assignment.peer_id)) if differences else None
        return estimate, held.get(FACTOR) if factor else None

    async def _check_header(self, run: RunState, assignment: AssignmentState, header: BlobHeader) -> None:
        if (header.run_id, header.round) != (assignment.run_id, assignment.round):
            raise UpdateRejected(
                "update.stale_round",
                f"the update is for run {header.run_id!r} round {header.round}, "
                f"its assignment for run {assignment.run_id!r} round {assignment.round}",
                fix="drop it; the next round asks again",
            )
        layout = await self._coordinator.effects.layout(run)
        error: UpdateRejected | None = None
        if header.layout_digest != layout.digest:
            error = UpdateRejected(
                "update.wrong_layout",
                "the update's tensors have other names, shapes or dtypes than this run's model",
                fix="install the same version of the task on coordinator and peer",
            )
        elif header.size_bytes > (most := update_bytes_max(run.spec, layout, assignment.base_version)):
            error = UpdateRejected(
                "update.oversize",
                f"the update has {header.size_bytes} bytes; with codec {run.spec.compression.up!r} "
                f"it can have at most {most}",
                fix="install the same version of Muster and of the task on coordinator and peer",
            )
        if error is not None:
            await self._refused(assignment, error)
            raise error

    async def _refused(self, assignment: AssignmentState, error: UpdateRejected) -> None:
        await self._coordinator.post_surely(
            UpdateRefused(
                run_id=assignment.run_id,
                assignment_id=assignment.assignment_id,
                error_id=error.id,
                message=str(error),
            )
        )

    # -- look-ups -----------------------------------------------------------------------------------------------------

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
        if assignment.role != "train":
            raise StateError(
                "update.not_asked", f"assignment {assignment_id!r} is to {assignment.role}, not to train"
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

    def _path(self, assignment_id: str) -> Path:
        return self._coordinator.spool / f"{assignment_id}.part"

    def _body(self, header: BlobHeader) -> PartialBody:
        return PartialBody.open(self._path(header.assignment_id), header)

    def _lock(self, assignment_id: str) -> asyncio.Lock:
        """One for all who ask while somebody holds it or waits for it."""
        return self._locks.setdefault(assignment_id, asyncio.Lock())


async def _next_chunk(
    requests: AsyncIterator[pb.UploadUpdateRequest],
) -> pb.UploadUpdateRequest | None:
    try:
        return await asyncio.wait_for(anext(requests, None), CHUNK_SECONDS_MAX)
    except TimeoutError:
        raise TransferError(
            "transfer.stalled", f"no chunk came for {CHUNK_SECONDS_MAX:.0f} s", fix="resume the upload"
        ) from None


def _reopen(path: Path) -> PartialBody:
    try:
        return PartialBody.reopen(path)
    except FileNotFoundError:
        raise TransferError(
            "transfer.nothing_held", "nothing of this update is held here", fix="begin the upload"
        ) from None
