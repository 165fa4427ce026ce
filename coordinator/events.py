"""What is told after a commit, and to whom: every subscriber hears of each decision, in the order of the commits.

A subscriber reads what it is given and starts work; it changes no state of its publisher and never waits. Subscribers
are attached in one place, `coordinator/wiring`; the order of attachment is the order in which they hear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from coordinator.engine.state import Effect, RunState, Transition

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Committed:
    """One decision, durable. `accepted` is whether the event that was fed did what it is for (or had done so before);
    if not, nothing has changed, and `reason` says why."""

    transitions: Sequence[Transition] = ()
    sequences: Sequence[int] = ()  # of the events, one for each transition
    effects: Sequence[Effect] = ()
    run: RunState | None = None  # as decided; None: the decision is about peers
    accepted: bool = True
    reason: str = ""

    def sequence(self, kind: str, assignment_id: str) -> int | None:
        """Of the first event of this kind and assignment, if the decision has one."""
        for transition, sequence in zip(self.transitions, self.sequences, strict=True):
            if (transition.kind, transition.assignment_id) == (kind, assignment_id):
                return sequence
        return None


@dataclass(frozen=True, kw_only=True)
class RunLeft:
    """A run is live here no more although no decision ended it. `ended`: an admin or another writer has ended it in the
    store; otherwise it stands still until the next start."""

    run_id: str
    ended: bool


Notice = Committed | RunLeft
Subscriber = Callable[[Notice], None]


class Events:
    """The subscribers of committed decisions, told in the order in which they attached."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def attach(self, *subscribers: Subscriber) -> None:
        self._subscribers.extend(subscribers)

    def publish(self, notice: Notice) -> None:
        """A subscriber that fails costs no other: what is told is durable, and a restart issues its effects again."""
        for subscriber in self._subscribers:
            try:
                subscriber(notice)
            except Exception:
                log.exception("subscriber.failed", notice=type(notice).__name__)


def log_events(notice: Notice) -> None:
    """Subscriber: each event, as a line of the log."""
    if not isinstance(notice, Committed):
        return
    for transition in notice.transitions:
        if transition.entity == "peer":
            log.info(transition.kind or "peer.changed", peer_id=transition.peer_id, reason=transition.reason)
        elif transition.kind:
            tell = log.warning if transition.kind == "run.warned" else log.info
            tell(
                transition.kind,
                run_id=transition.run_id,
                round=transition.round,
                peer_id=transition.peer_id,
                reason=transition.reason,
            )
