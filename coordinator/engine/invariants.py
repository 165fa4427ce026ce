"""What must hold of every event log, whatever was killed, cut off or sent twice on the way to it.

* At most one committed version for a round; versions are consecutive.
* What was aggregated is what was admitted: nothing else, and no acknowledged update is left out.
* Nothing leaves an ended state; every step is one that its entity may take.
* A peer has one live assignment in a round at most, attempts count up, and at most one update counts.
* Nothing outlives its round but what its schedule has let go on; nothing outlives its run; a finished run has committed
  what it wanted.
* The epochs of a name's sessions only grow, and after a peer was removed its name begins with an enrolment.
* A peer that is set aside in a run is offered nothing of it until it is taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from muster.work import evaluates

_LIVE = frozenset({"OFFERED", "ACCEPTED", "PREPARING", "TRAINING", "UPLOADING"})
_GOING = frozenset({"QUEUED", "RUNNING", "PAUSED"})
_OPEN = frozenset({"PLANNED", "OPEN", "AGGREGATING"})
_NEW = frozenset({""})

# kind -> the states it may start from, and the one it leads to ("": as before)
_STEPS: Mapping[str, tuple[frozenset[str], str]] = {
    "run.submitted": (_NEW, "QUEUED"),
    "run.started": (frozenset({"QUEUED"}), "RUNNING"),
    "run.waiting": (frozenset({"RUNNING"}), ""),
    "run.warned": (_GOING, ""),
    "run.paused": (frozenset({"RUNNING"}), "PAUSED"),
    "run.resumed": (frozenset({"PAUSED"}), "RUNNING"),
    "run.finished": (frozenset({"RUNNING", "PAUSED"}), "FINISHED"),
    "run.failed": (_GOING, "FAILED"),
    "run.cancelled": (_GOING, "CANCELLED"),
    "round.planned": (_NEW, "PLANNED"),
    "round.opened": (frozenset({"PLANNED"}), "OPEN"),
    "round.quorum": (frozenset({"OPEN"}), ""),
    "round.restored": (frozenset({"OPEN"}), ""),
    "round.aggregating": (frozenset({"OPEN"}), "AGGREGATING"),
    "round.committed": (frozenset({"AGGREGATING"}), "COMMITTED"),
    "round.skipped": (_OPEN, "SKIPPED"),
    "round.failed": (_OPEN, "FAILED"),
    "assignment.offered": (_NEW, "OFFERED"),
    "assignment.accepted": (frozenset({"OFFERED"}), "ACCEPTED"),
    "assignment.preparing": (frozenset({"OFFERED", "ACCEPTED"}), "PREPARING"),
    "assignment.training": (frozenset({"OFFERED", "ACCEPTED", "PREPARING"}), "TRAINING"),
    "assignment.uploading": (_LIVE - {"UPLOADING"}, "UPLOADING"),
    "assignment.delivered": (_LIVE, "DELIVERED"),
    "assignment.rejected": (_LIVE, "REJECTED"),
    "assignment.expired": (_LIVE, "EXPIRED"),
    "assignment.lost": (_LIVE, "LOST"),
    "evaluation.started": (_NEW, "RUNNING"),
    "evaluation.own": (frozenset({"RUNNING"}), ""),
    "evaluation.restored": (frozenset({"RUNNING"}), ""),
    "evaluation.postponed": (frozenset({"RUNNING"}), ""),
    "evaluation.finished": (frozenset({"RUNNING"}), "FINISHED"),
}


class EventLike(Protocol):
    """The columns of an event that the checks read."""

    @property
    def sequence(self) -> int: ...
    @property
    def at(self) -> float: ...
    @property
    def kind(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def round(self) -> int: ...
    @property
    def assignment_id(self) -> str: ...
    @property
    def peer_id(self) -> str: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


@dataclass(kw_only=True)
class _Work:
    state: str = ""
    peer_id: str = ""
    role: str = ""
    evaluation: bool = False
    attempt: int = 0


@dataclass(kw_only=True)
class _Round:
    state: str = ""
    work: dict[str, _Work] = field(default_factory=dict[str, _Work])
    aggregated: list[str] = field(default_factory=list[str])
    goes_on: bool | None = None  # whether its work outlives it; None: it aggregates all that is delivered

    def live(self, *, evaluation: bool) -> list[str]:
        return [e for e, work in self.work.items() if work.evaluation is evaluation and work.state in _LIVE]

    def delivered(self) -> list[str]:
        return [e for e, work in self.work.items() if not evaluates(work.role) and work.state == "DELIVERED"]


@dataclass(kw_only=True)
class _Run:
    state: str = ""
    rounds: dict[int, _Round] = field(default_factory=dict[int, _Round])
    evaluations: dict[int, str] = field(default_factory=dict[int, str])
    digests: list[str] = field(default_factory=list[str])  # of versions 0, 1, ...
    version_rounds: dict[int, int] = field(default_factory=dict[int, int])  # version -> the round it is of
    waiting: set[str] = field(default_factory=set[str])  # updates of ended rounds that no version has in it
    carried: set[str] = field(default_factory=set[str])  # work of ended rounds that goes on
    planned: int = 0
    committed: int = 0
    aside: set[str] = field(default_factory=set[str])  # peers


@dataclass(kw_only=True)
class _Peer:
    epoch: int = 0
    revoked: bool = False


class _Checker:
    def __init__(self) -> None:
        self.violations: list[str] = []
        self._runs: dict[str, _Run] = {}
        self._peers: dict[str, _Peer] = {}
        self._sequence = -1
        self._event: EventLike | None = None

    def feed(self, event: EventLike) -> None:
        self._event = event
        if event.sequence <= self._sequence:
            self._broken(f"it comes after event {self._sequence}")
        self._sequence = max(self._sequence, event.sequence)
        entity = event.kind.partition(".")[0]
        if entity == "peer":
            self._feed_peer(event)
            return
        run = self._runs.setdefault(event.run_id, _Run())
        if run.state and run.state not in _GOING:
            self._broken(f"run {event.run_id} has ended before: it is {run.state}")
            return
        if not run.state and event.kind != "run.submitted":
            self._broken(f"run {event.run_id} has not been submitted")
            return
        match entity:
            case "run":
                self._feed_run(event, run)
            case "round":
                self._feed_round(event, run)
            case "assignment":
                self._feed_assignment(event, run)
            case "evaluation":
                self._feed_evaluation(event, run)
            case "standing":
                self._feed_standing(event, run)
            case "model":
                self._feed_model(event, run)
            case _:
                self._broken("its kind is unknown")

    def _broken(self, what: str) -> None:
        event = self._event
        if event is not None:
            self.violations.append(f"event {event.sequence} ({event.kind}): {what}")

    def _step(self, what: str, before: str) -> str:
        """The state after the event; a step that may not be taken is a violation, and taken."""
        kind = self._event.kind if self._event is not None else ""
        allowed, after = _STEPS.get(kind, (frozenset[str](), ""))
        if before not in allowed:
            self._broken(f"{what} was {before or 'unknown'}")
        return after or before

    # -- entities ----------------------------------------------------------------------------------------

    def _feed_run(self, event: EventLike, run: _Run) -> None:
        run.state = self._step(f"run {event.run_id}", run.state)
        if run.state in _GOING:
            return
        for number, round_ in run.rounds.items():
            if round_.state in _OPEN:
                self._broken(f"round {number} outlives its run: it is {round_.state}")
            for assignment_id in round_.live(evaluation=False) + round_.live(evaluation=True):
                self._broken(f"{assignment_id} outlives its run")
        for version, state in run.evaluations.items():
            if state == "RUNNING":
                self._broken(f"the evaluation of version {version} outlives its run")
        wanted = event.data.get("rounds")
        if run.state == "FINISHED" and run.committed != wanted:
            self._broken(f"run {event.run_id} finished with {run.committed} of {wanted} rounds committed")

    def _feed_round(self, event: EventLike, run: _Run) -> None:
        number = event.round
        if event.kind == "round.planned":
            if number != run.planned + 1:
                self._broken(f"round {number} follows round {run.planned}")
            run.planned = max(run.planned, number)
        round_ = run.rounds.setdefault(number, _Round())
        round_.state = self._step(f"round {number}", round_.state)
        if event.kind == "round.planned" and not 0 <= event.data["base_version"] < len(run.digests):
            self._broken(f"version {event.data['base_version']}, its base, does not exist")
        if event.kind == "round.aggregating":
            self._freeze(event, run, round_)
        if event.kind == "round.committed":
            self._commit(event, run, round_)
        if round_.state not in _OPEN:
            self._carry(event, run, round_)
            for assignment_id in set(round_.live(evaluation=False)) - run.carried:
                self._broken(f"{assignment_id} outlives round {number}")

    def _freeze(self, event: EventLike, run: _Run, round_: _Round) -> None:
        round_.aggregated = sorted(event.data["updates"])
        round_.goes_on = event.data.get("work_goes_on")
        delivered = set(round_.delivered())
        for assignment_id in sorted(set(round_.aggregated) - delivered - run.waiting):
            self._broken(f"{assignment_id} is aggregated and was not admitted to round {event.round}")
        for assignment_id in sorted(delivered - set(round_.aggregated)) if round_.goes_on is None else ():
            self._broken(f"{assignment_id} was admitted to round {event.round} and is lost")
        if len(round_.aggregated) != len(set(round_.aggregated)):
            self._broken(f"round {event.round} aggregates an update twice")

    def _carry(self, event: EventLike, run: _Run, round_: _Round) -> None:
        """What a round leaves behind at its end is what it says that it leaves."""
        run.waiting -= set(round_.aggregated)
        left = set(event.data.get("carried", ()))
        waiting = (
            set(round_.delivered()) - set(round_.aggregated) if round_.goes_on is not None else set[str]()
        )
        for assignment_id in sorted(waiting - left):
            self._broken(f"{assignment_id} was admitted to round {event.round} and is lost")
        run.waiting |= waiting & left
        run.carried |= left - waiting

    def _commit(self, event: EventLike, run: _Run, round_: _Round) -> None:
        version = event.data["version"]
        run.committed += 1
        if version in run.version_rounds:
            self._broken(f"version {version} was committed by round {run.version_rounds[version]} before")
        run.version_rounds[version] = event.round
        if version != len(run.digests) - 1 or run.digests[version] != event.data["digest"]:
            self._broken(f"version {version} is not the one that was made last")
        if sorted(event.data["updates"]) != round_.aggregated:
            self._broken(f"round {event.round} commits other updates than it aggregated")

    def _feed_assignment(self, event: EventLike, run: _Run) -> None:
        round_ = run.rounds.get(event.round)
        if round_ is None:
            self._broken(f"{event.assignment_id} belongs to round {event.round}, which was never planned")
            return
        if event.kind == "assignment.offered" and event.assignment_id not in round_.work:
            self._offer(event, round_)
            if event.peer_id in run.aside:
                self._broken(f"{event.peer_id} is set aside and offered work")
        work = round_.work.setdefault(event.assignment_id, _Work())
        work.state = self._step(event.assignment_id, work.state)
        if work.peer_id != event.peer_id:
            self._broken(f"{event.assignment_id} was offered to {work.peer_id or 'nobody'}")
        if event.kind == "assignment.delivered" and not evaluates(work.role):
            if event.assignment_id in run.carried:
                run.waiting.add(event.assignment_id)
            elif round_.state != "OPEN" and not (round_.goes_on and round_.state == "AGGREGATING"):
                self._broken(f"round {event.round} was {round_.state} when {event.assignment_id} delivered")
            if [round_.work[other].peer_id for other in round_.delivered()].count(event.peer_id) > 1:
                self._broken(f"{event.peer_id} delivered twice for round {event.round}")
        if work.state not in _LIVE:
            run.carried.discard(event.assignment_id)

    def _feed_standing(self, event: EventLike, run: _Run) -> None:
        aside = event.peer_id in run.aside
        if event.kind == "standing.set_aside" and not aside:
            run.aside.add(event.peer_id)
        elif event.kind == "standing.taken_back" and aside:
            run.aside.remove(event.peer_id)
        else:
            self._broken(f"{event.peer_id} was {'set aside' if aside else 'not set aside'} before")

    def _offer(self, event: EventLike, round_: _Round) -> None:
        role, attempt = event.data["role"], event.data["attempt"]
        # Logs from before tell it by the role alone.
        evaluation = event.data.get("evaluation", evaluates(role))
        if not evaluation:
            if round_.state != "OPEN":
                self._broken(f"round {event.round} is {round_.state or 'unknown'} and offers work")
            before = [w for w in round_.work.values() if not w.evaluation and w.peer_id == event.peer_id]
            if any(work.state in _LIVE for work in before):
                self._broken(f"{event.peer_id} holds work for round {event.round} already")
            if attempt != len(before) + 1:
                self._broken(f"attempt {attempt} of {event.peer_id} comes after {len(before)} attempts")
        round_.work[event.assignment_id] = _Work(
            peer_id=event.peer_id, role=role, attempt=attempt, evaluation=evaluation
        )

    def _feed_evaluation(self, event: EventLike, run: _Run) -> None:
        version = event.data["version"]
        before = run.evaluations.get(version, "")
        run.evaluations[version] = self._step(f"the evaluation of version {version}", before)
        if version >= len(run.digests):
            self._broken(f"version {version} does not exist")

    def _feed_model(self, event: EventLike, run: _Run) -> None:
        if event.data["version"] != len(run.digests):
            self._broken(f"version {event.data['version']} follows version {len(run.digests) - 1}")
        run.digests.append(event.data["digest"])

    def _feed_peer(self, event: EventLike) -> None:
        peer = self._peers.setdefault(event.peer_id, _Peer())
        epoch = event.data["epoch"]
        if peer.revoked and event.kind != "peer.enrolled":
            self._broken(f"{event.peer_id} was removed before")
        if epoch < peer.epoch or (event.kind == "peer.connected" and epoch == peer.epoch):
            self._broken(f"session {epoch} of {event.peer_id} follows session {peer.epoch}")
        peer.epoch = max(peer.epoch, epoch)
        peer.revoked = event.kind == "peer.revoked"


def check(events: Iterable[EventLike]) -> list[str]:
    """The violations, one sentence each; empty if all holds. `events` is a whole log, in the order of
    sequence."""
    checker = _Checker()
    for event in events:
        checker.feed(event)
    return checker.violations
