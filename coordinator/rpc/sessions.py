"""Membership calls: enrolment, and the session stream that carries heartbeats, offers and reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import structlog

from coordinator.background import Background
from coordinator.engine.state import (
    AssignmentFailed,
    PeerStatus,
)
from coordinator.lookups import Assignments
from coordinator.membership import detector
from coordinator.membership.enrolment import EnrolmentGate
from coordinator.membership.members import MemberBook, hash_secret
from coordinator.rpc.convert import membership as convert
from coordinator.rpc.offers import Session, SessionBook
from coordinator.runs import Runs
from muster.errors import AuthenticationError, NotFoundError, StorageError, TransferError, UsageError
from muster.runtime import clock
from muster.runtime.version import muster_version
from muster.texts import one_line
from muster.transport.base import CallContext, Route
from muster.transport.identity import ANONYMOUS, EVERYBODY, PEERS, Identity
from muster.wire import ENROL, SESSION
from protos.v1 import membership_pb2 as pb

log = structlog.get_logger()


class MembershipServicer:
    """`muster.v1.MembershipService`."""

    def __init__(
        self,
        *,
        runs: Runs,
        assignments: Assignments,
        members: MemberBook,
        sessions: SessionBook,
        gate: EnrolmentGate,
        background: Background,
        heartbeat_seconds: float,
    ) -> None:
        self._runs = runs
        self._assignments = assignments
        self._members = members
        self._sessions = sessions
        self._gate = gate
        self._background = background
        self._heartbeat_seconds = heartbeat_seconds

    def routes(self) -> list[Route]:
        return [
            Route(method=ENROL, handle=self.enrol, allows=EVERYBODY, identify=self._known),
            Route(method=SESSION, handle=self.session, allows=PEERS, identify=self._caller),
        ]

    def _known(self, request: pb.EnrolRequest) -> Identity:
        """Who enrols again, as before each session."""
        known = self._members.get(request.name)
        proven = known is not None and known.secret_hash == hash_secret(request.secret)
        return Identity.peer(request.name) if proven else ANONYMOUS

    def _caller(self, first: pb.SessionRequest) -> Identity:
        if first.WhichOneof("message") != "hello":
            raise _no_hello()
        credentials = first.hello.credentials
        return Identity.peer(self._members.authenticate(credentials.peer_id, credentials.secret))

    async def enrol(self, request: pb.EnrolRequest, context: CallContext) -> pb.EnrolResponse:
        name = request.name
        secret_hash = hash_secret(request.secret)
        event = convert.enrolled(request, secret_hash)
        known = self._members.get(name)
        removed = known is not None and known.status is PeerStatus.REVOKED
        if known is not None and known.secret_hash != secret_hash and not removed:
            raise AuthenticationError(
                "peer.name_taken",
                f"the name {name!r} belongs to another peer",
                cause="it enrolled before with another secret; the data folder of this peer may be new or lost",
                fix=f"take another name (--name), or give this peer its old data folder back; if that is lost, the "
                f"coordinator's admin frees the name: muster peer remove {name}",
            )
        now = clock.now()
        if known is None or (removed and known.secret_hash != secret_hash):
            self._gate.check(context.address, self._members.count(), now)
        elif not removed and not detector.tells_nothing_new(known, event):
            self._gate.check_again(name, now)
        committed = await self._members.submit(event)
        if not committed.accepted:  # another call was quicker
            self._members.authenticate(name, request.secret)
        return pb.EnrolResponse(peer_id=name, coordinator_version=muster_version())

    async def session(
        self, requests: AsyncIterator[pb.SessionRequest], context: CallContext
    ) -> AsyncIterator[pb.SessionResponse]:
        first = await anext(requests, None)
        if first is None:
            raise _no_hello()
        peer_id, hello = context.identity.name, first.hello
        session = Session(peer_id=peer_id, epoch=await self._members.connect(peer_id))
        self._sessions.open(session)
        reader = asyncio.create_task(self._read(session, requests))
        try:
            yield pb.SessionResponse(
                welcome=pb.Welcome(epoch=session.epoch, heartbeat_seconds=self._heartbeat_seconds)
            )
            # Not through the outbox, which is bounded: however much there is to settle, the peer takes it at its pace.
            for settling in self._reconciled(session, hello):
                yield settling
            while (message := await session.outbox.get()) is not None:
                yield message
                if session.overflowed:
                    raise TransferError("session.unread", "the peer does not read what its session sends")
            if reader.done() and isinstance(misuse := reader.exception(), UsageError):
                raise misuse
        finally:
            reader.cancel()
            goodbye = await _result(reader)
            if self._sessions.closed(session):
                self._background.spawn(self._ended(session, goodbye))

    async def _ended(self, session: Session, goodbye: bool) -> None:
        await self._members.submit_surely(
            detector.Disconnected(peer_id=session.peer_id, epoch=session.epoch, goodbye=goodbye)
        )

    def _reconciled(self, session: Session, hello: pb.Hello) -> Iterator[pb.SessionResponse]:
        """What the peer holds goes on or is cancelled; what it should hold and does not is offered again."""
        held = set(hello.held_assignment_ids)
        for run, assignment, deadline_at in self._assignments.live(session.peer_id):
            # Also what it holds: the offer tells the deadline, which may have moved.
            held.discard(assignment.assignment_id)
            model = run.models.get(assignment.work.base)
            if model is not None:  # without its base the work is over meanwhile
                yield convert.offer(run, assignment, model, deadline_at - clock.now())
        for assignment_id in held:
            yield convert.cancel(assignment_id, "the coordinator no longer waits for it")
        for run_id in hello.held_run_ids:
            if run_id not in self._runs and run_id not in self._runs.unreadable:
                yield convert.run_ended(run_id)

    async def _read(self, session: Session, requests: AsyncIterator[pb.SessionRequest]) -> bool:
        """Handles what the peer says, in order. Gives whether it said goodbye."""
        try:
            async for message in requests:
                match message.WhichOneof("message"):
                    case "heartbeat":
                        if not await self._members.heartbeat(session.peer_id, session.epoch):
                            return False  # it was given up meanwhile: with a new session it is back
                        ack = pb.HeartbeatAck(sequence=message.heartbeat.sequence)
                        session.send(pb.SessionResponse(heartbeat_ack=ack))
                    case "report":
                        await self._report(session, message.report)
                    case "goodbye":
                        return True
                    case _:
                        raise UsageError("session.unexpected", "a session has one hello, at its start")
            return False
        except Exception:
            log.exception("session.failed", peer_id=session.peer_id)
            raise
        finally:
            session.close("the session has ended", reconnect=True)

    async def _report(self, session: Session, report: pb.AssignmentReport) -> None:
        run, assignment = await self._assignments.find(report.assignment_id)
        if assignment is None or assignment.peer_id != session.peer_id:
            # Perhaps of a time before the database was lost; the peer has been told to drop it, and goes on.
            log.warning("report.ignored", peer_id=session.peer_id, assignment_id=report.assignment_id)
            return
        event = convert.report_event(assignment.run_id, report, Identity.peer(session.peer_id).actor)
        if run is None or assignment.status.ended:
            return  # it crossed with a deadline or a cancellation, which the peer has been told of
        try:
            await self._runs.post(event)
        except NotFoundError:
            return  # the run ended meanwhile
        except StorageError:
            raise  # the peer comes again with it
        except (
            Exception
        ) as error:  # this report can never be stored: it costs the assignment that it is about
            log.exception("report.refused", peer_id=session.peer_id, assignment_id=report.assignment_id)
            await self._runs.post_surely(
                AssignmentFailed(
                    run_id=assignment.run_id,
                    assignment_id=assignment.assignment_id,
                    error_id="report.refused",
                    message=one_line(f"its report cannot be stored: {type(error).__name__}: {error}"),
                    traceback="",
                    retry=False,
                )
            )


def _no_hello() -> UsageError:
    return UsageError("session.no_hello", "a session starts with a hello")


async def _result(reader: asyncio.Task[bool]) -> bool:
    """Whether a reader that has ended or is being cancelled had read a goodbye."""
    try:
        return await reader
    except (asyncio.CancelledError, Exception):  # logged where it happened
        return False
