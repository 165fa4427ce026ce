"""Open sessions: where offers, cancellations and other messages go out to peers."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from dataclasses import dataclass, field

from coordinator.engine.state import AssignmentState, Cancel, Offer, RunState
from coordinator.events import Committed, Notice, RunLeft
from coordinator.rpc.convert import membership as convert
from coordinator.runs import Runs
from muster.runtime import clock
from protos.v1 import membership_pb2 as pb

OUTBOX_MAX = 256


@dataclass(kw_only=True)
class Session:
    """One open stream of one peer. The outbox is bounded: a peer that does not read loses its session, not memory."""

    peer_id: str
    epoch: int
    outbox: asyncio.Queue[pb.SessionResponse | None] = field(
        default_factory=lambda: asyncio.Queue(OUTBOX_MAX)
    )
    overflowed: bool = False

    def send(self, message: pb.SessionResponse) -> None:
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.overflowed = True

    def close(self, reason: str, *, reconnect: bool) -> None:
        self.send(convert.closing(reason, reconnect=reconnect))
        try:
            self.outbox.put_nowait(None)
        except asyncio.QueueFull:
            self.overflowed = True


class SessionBook:
    """The open sessions by peer."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def get(self, peer_id: str) -> Session | None:
        return self._sessions.get(peer_id)

    def open(self, session: Session) -> None:
        """A newer session takes the place of an older one, which is told and ended."""
        older = self._sessions.get(session.peer_id)
        if older is not None:
            older.close("a newer session of this peer has taken over", reconnect=False)
        self._sessions[session.peer_id] = session

    def closed(self, session: Session) -> bool:
        """Whether it was still the peer's current session."""
        if self._sessions.get(session.peer_id) is session:
            del self._sessions[session.peer_id]
            return True
        return False

    def is_open(self, peer_id: str) -> bool:
        return peer_id in self._sessions

    def ask_restore(self, run_id: str, digest: str, size_bytes: int, *, but: Container[str]) -> int:
        """Asks every connected peer that is not in `but` for a version; how many."""
        message = convert.restore(run_id, digest, size_bytes)
        asked = [session for peer_id, session in self._sessions.items() if peer_id not in but]
        for session in asked:
            session.send(message)
        return len(asked)

    def run_ended(self, run_id: str) -> None:
        """Peers may forget what they keep for it; one that is away hears it when its next session opens."""
        for session in self._sessions.values():
            session.send(convert.run_ended(run_id))

    def close_all(self, reason: str, *, reconnect: bool) -> None:
        for session in self._sessions.values():
            session.close(reason, reconnect=reconnect)

    def offer(self, run: RunState, assignment: AssignmentState, seconds_left: float) -> None:
        """Sends the offer if the peer is connected; if not, it is sent when the peer's next session opens."""
        session = self._sessions.get(assignment.peer_id)
        model = run.models.get(assignment.work.base)
        if session is not None and model is not None:  # without its base the work is over meanwhile
            session.send(convert.offer(run, assignment, model, seconds_left))

    def cancel(self, peer_id: str, assignment_id: str, reason: str) -> None:
        session = self._sessions.get(peer_id)
        if session is not None:
            session.send(convert.cancel(assignment_id, reason))


class SessionNotices:
    """Tells peers over their open sessions what was decided of their work."""

    def __init__(self, *, sessions: SessionBook, runs: Runs) -> None:
        self._sessions = sessions
        self._runs = runs

    def hear(self, notice: Notice) -> None:
        """Subscriber."""
        match notice:
            case RunLeft(run_id=run_id, ended=True):
                self._sessions.run_ended(run_id)
            case Committed(run=run, effects=effects):
                for effect in effects:
                    if isinstance(effect, Offer):
                        self._offer(effect)
                    elif isinstance(effect, Cancel):
                        self._sessions.cancel(effect.peer_id, effect.assignment_id, effect.reason)
                if run is not None and run.status.ended:
                    self._sessions.run_ended(run.run_id)
            case RunLeft():
                pass

    def _offer(self, effect: Offer) -> None:
        run = self._runs.get(effect.run_id)
        if run is not None:  # a later decision of the same commit may have ended it
            self._sessions.offer(run, effect.assignment, effect.deadline_at - clock.now())
