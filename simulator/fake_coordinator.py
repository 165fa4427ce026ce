"""A coordinator that does what a test says: for tests of peers, the daemon's and whoever writes another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from muster import wire
from muster.errors import AuthenticationError, MusterError, NotFoundError, UnreachableError
from muster.files.digests import checksum, digest_bytes
from muster.transport.base import CallContext, Route
from muster.transport.identity import EVERYBODY
from protos.v1 import membership_pb2 as pb
from protos.v1 import models_pb2, updates_pb2
from protos.v1.tensors_pb2 import BlobHeader, Chunk

WAIT_SECONDS_MAX = 20.0


class FakeSession:
    """One session stream as the coordinator's side sees it. What is put in the outbox the peer gets."""

    def __init__(self, hello: pb.Hello) -> None:
        self.hello = hello
        self.outbox: asyncio.Queue[pb.SessionResponse | None] = asyncio.Queue()

    def send(self, **message: Any) -> None:
        """`send(offer=...)`, `send(cancel=...)`: one message of a session."""
        self.outbox.put_nowait(pb.SessionResponse(**message))

    def end(self) -> None:
        """Ends the stream from this side."""
        self.outbox.put_nowait(None)


class FakeCoordinator:
    """The wire contract's peer-facing half, scripted: it remembers all that it is told and computes nothing.

        server = await MemoryTransport(hub).serve("coordinator:1", fake.routes())
        session = await fake.session()                       # as soon as a peer opens one
        session.send(offer=assignment)
        await fake.told(assignment.assignment_id, pb.ASSIGNMENT_PHASE_TRAINING)

    What a test may set stands in the attributes; `AssertionError` tells of a peer that breaks the protocol.
    """

    def __init__(self) -> None:
        self.models: dict[str, bytes] = {}
        self.plans: dict[str, models_pb2.PlanModelResponse] = {}  # by the version that is wanted
        self.secrets: dict[str, str] = {}
        self.enrolments: list[pb.EnrolRequest] = []
        self.sessions: asyncio.Queue[FakeSession] = asyncio.Queue()
        self.reports: list[pb.AssignmentReport] = []
        self.heartbeats = 0
        self.goodbyes: list[str] = []
        self.bodies: dict[str, bytearray] = {}
        self.committed: dict[str, updates_pb2.Receipt] = {}
        self.refusals: dict[str, MusterError] = {}  # assignment -> what its commit is refused with
        self.receipts_to_lose = 0
        self.answers = asyncio.Event()  # unset, a committed update gets its receipt only later
        self.answers.set()
        self.acknowledges = True
        self.heartbeat_seconds = 30.0
        self.enrol_error: MusterError | None = None
        self.begin_error: MusterError | None = None
        self.fetches = 0
        self._changed = asyncio.Condition()

    def routes(self) -> list[Route]:
        """What it serves."""
        return [
            Route(allows=EVERYBODY, method=wire.ENROL, handle=self._enrol),
            Route(allows=EVERYBODY, method=wire.SESSION, handle=self._session),
            Route(allows=EVERYBODY, method=wire.PLAN_MODEL, handle=self._plan),
            Route(allows=EVERYBODY, method=wire.FETCH_MODEL, handle=self._fetch),
            Route(allows=EVERYBODY, method=wire.BEGIN_UPDATE, handle=self._begin),
            Route(allows=EVERYBODY, method=wire.UPLOAD_UPDATE, handle=self._upload),
            Route(allows=EVERYBODY, method=wire.GET_UPDATE_STATUS, handle=self._status),
            Route(allows=EVERYBODY, method=wire.COMMIT_UPDATE, handle=self._commit),
        ]

    async def until(self, holds: Callable[[], Any]) -> Any:
        """Waits for a condition on what this coordinator has been told; gives what it gave."""
        async with self._changed, asyncio.timeout(WAIT_SECONDS_MAX):
            await self._changed.wait_for(holds)
        return holds()

    async def told(self, assignment_id: str, phase: pb.AssignmentPhase.ValueType) -> pb.AssignmentReport:
        """The first report of this phase."""

        def found() -> pb.AssignmentReport | None:
            for report in self.reports:
                if (report.assignment_id, report.phase) == (assignment_id, phase):
                    return report
            return None

        report: pb.AssignmentReport = await self.until(found)
        return report

    async def session(self) -> FakeSession:
        """The next session that a peer opens."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            return await self.sessions.get()

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _enrol(self, request: pb.EnrolRequest, context: CallContext) -> pb.EnrolResponse:
        if self.enrol_error is not None:
            raise self.enrol_error
        self.enrolments.append(request)
        if self.secrets.setdefault(request.name, request.secret) != request.secret:
            raise AuthenticationError("peer.name_taken", "that name is another's")
        return pb.EnrolResponse(peer_id=request.name, coordinator_version="0")

    async def _session(
        self, requests: AsyncIterator[pb.SessionRequest], context: CallContext
    ) -> AsyncIterator[pb.SessionResponse]:
        session = FakeSession((await anext(requests)).hello)
        assert self.secrets[session.hello.credentials.peer_id] == session.hello.credentials.secret
        welcome = pb.Welcome(epoch=1, heartbeat_seconds=self.heartbeat_seconds)
        yield pb.SessionResponse(welcome=welcome)
        self.sessions.put_nowait(session)
        reading = asyncio.create_task(self._read(session, requests))
        try:
            while (response := await session.outbox.get()) is not None:
                yield response
        finally:
            reading.cancel()

    async def _read(self, session: FakeSession, requests: AsyncIterator[pb.SessionRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "heartbeat":
                    self.heartbeats += 1
                    if self.acknowledges:
                        session.send(heartbeat_ack=pb.HeartbeatAck(sequence=request.heartbeat.sequence))
                case "report":
                    self.reports.append(request.report)
                case _:
                    self.goodbyes.append(request.goodbye.reason)
            await self._note()
        session.end()

    async def _plan(
        self, request: models_pb2.PlanModelRequest, context: CallContext
    ) -> models_pb2.PlanModelResponse:
        return self.plans.get(request.digest, models_pb2.PlanModelResponse())

    async def _fetch(
        self, requests: AsyncIterator[models_pb2.FetchModelRequest], context: CallContext
    ) -> AsyncIterator[models_pb2.FetchModelResponse]:
        request = await anext(requests)
        if request.digest not in self.models:
            raise NotFoundError("model.not_found", "no such model")
        self.fetches += 1
        body = self.models[request.digest]
        header = BlobHeader(size_bytes=len(body), digest=request.digest, offset=request.offset)
        yield models_pb2.FetchModelResponse(header=header)
        for start in range(request.offset, len(body), 1 << 20):
            data = body[start : start + (1 << 20)]
            chunk = Chunk(offset=start, data=data, crc32c=checksum(data))
            yield models_pb2.FetchModelResponse(chunk=chunk)

    async def _begin(
        self, request: updates_pb2.BeginUpdateRequest, context: CallContext
    ) -> updates_pb2.BeginUpdateResponse:
        assignment_id = request.header.assignment_id
        if self.begin_error is not None:
            raise self.begin_error
        held = self.bodies.setdefault(assignment_id, bytearray())
        await self._note()
        return updates_pb2.BeginUpdateResponse(offset=len(held), receipt=self.committed.get(assignment_id))

    async def _upload(
        self, requests: AsyncIterator[updates_pb2.UploadUpdateRequest], context: CallContext
    ) -> AsyncIterator[updates_pb2.UploadUpdateResponse]:
        held = self.bodies[(await anext(requests)).begin.header.assignment_id]
        async for request in requests:
            assert request.chunk.offset == len(held)
            assert checksum(request.chunk.data) == request.chunk.crc32c
            held += request.chunk.data
        yield updates_pb2.UploadUpdateResponse(offset=len(held))

    async def _status(
        self, request: updates_pb2.GetUpdateStatusRequest, context: CallContext
    ) -> updates_pb2.GetUpdateStatusResponse:
        return updates_pb2.GetUpdateStatusResponse(receipt=self.committed.get(request.assignment_id))

    async def _commit(
        self, request: updates_pb2.CommitUpdateRequest, context: CallContext
    ) -> updates_pb2.CommitUpdateResponse:
        if request.assignment_id in self.refusals:
            raise self.refusals[request.assignment_id]
        body = bytes(self.bodies[request.assignment_id])
        assert digest_bytes(body) == request.digest
        receipt = updates_pb2.Receipt(
            assignment_id=request.assignment_id, digest=request.digest, size_bytes=len(body)
        )
        receipt = self.committed.setdefault(request.assignment_id, receipt)
        await self._note()
        await self.answers.wait()
        if self.receipts_to_lose:
            self.receipts_to_lose -= 1
            raise UnreachableError("transport.unreachable", "the receipt is lost")
        return updates_pb2.CommitUpdateResponse(receipt=receipt)
