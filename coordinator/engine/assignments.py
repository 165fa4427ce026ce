"""The life of an assignment: offered to one peer, accepted, at work, and ended in one of four ways."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from coordinator.engine import preparing, standings
from coordinator.engine.decision_builder import DecisionBuilder, last_line
from coordinator.engine.history import NO_HISTORY, work_done
from coordinator.engine.state import (
    AlreadySo,
    AssignmentEvaluated,
    AssignmentFailed,
    AssignmentProgressed,
    AssignmentState,
    AssignmentStatus,
    Cancel,
    Offer,
    PeerStatus,
    PeerView,
    RunState,
    UpdateAdmitted,
    UpdateRefused,
)
from coordinator.engine.works import Works
from muster.task import metrics
from muster.work import evaluates

MESSAGE_CHARACTERS_MAX = 1_000  # a peer's word, kept in every event that tells of it
TRACEBACK_CHARACTERS_MAX = 16_000  # the end of a traceback is what tells

_ORDER = (
    AssignmentStatus.OFFERED,
    AssignmentStatus.ACCEPTED,
    AssignmentStatus.PREPARING,
    AssignmentStatus.TRAINING,
    AssignmentStatus.UPLOADING,
)
_STEPS = {
    AssignmentStatus.ACCEPTED: "accepted",
    AssignmentStatus.PREPARING: "prepares (loads its data) for",
    AssignmentStatus.TRAINING: "is at",
    AssignmentStatus.UPLOADING: "is uploading",
}


def find(state: RunState, assignment_id: str) -> AssignmentState | None:
    """Among live rounds and evaluations; those of ended ones are history."""
    return next((held[assignment_id] for held in _held(state) if assignment_id in held), None)


def live_offers(state: RunState, peer_id: str | None = None) -> tuple[Offer, ...]:
    """The offers that stand, of one peer or of all: what to send again after a restart or a reconnect."""
    offers: list[Offer] = []
    for round_ in state.rounds.values():
        if round_.takes_updates and round_.deadline_at is not None:
            offers += _standing(state, round_.assignments, round_.deadline_at, peer_id)
    offers += _standing(state, state.carried, math.inf, peer_id)
    for evaluation in state.evaluations.values():
        offers += _standing(state, evaluation.assignments, evaluation.deadline_at, peer_id)
    return tuple(offers)


def _standing(state: RunState, held: Works, deadline_at: float, peer_id: str | None) -> list[Offer]:
    works = [held[name] for name in held.live] if peer_id is None else held.of_peer(peer_id)
    return [
        Offer(
            run_id=state.run_id,
            assignment=assignment,
            deadline_at=preparing.work_due(assignment, deadline_at, state.spec.round),
        )
        for assignment in works
        if not assignment.status.ended
    ]


# -- what the engine does --------------------------------------------------------------------------------


def offer(draft: DecisionBuilder, assignment: AssignmentState, deadline_at: float) -> None:
    """Records a new assignment and orders its offer."""
    draft.put_assignment(assignment)
    if not assignment.evaluation:
        known = draft.state.history.get(assignment.peer_id, NO_HISTORY)
        draft.change(history=draft.state.history.set(assignment.peer_id, known.asks(assignment.round)))
    draft.record(
        "assignment.offered",
        "assignment",
        {"assignment_id": assignment.assignment_id},
        before=None,
        values={
            "run_id": assignment.run_id,
            "round": assignment.round,
            "peer_id": assignment.peer_id,
            "work_json": assignment.work.to_json(),
            "evaluation": assignment.evaluation,
            "attempt": assignment.attempt,
            "state": str(assignment.status),
            "reason": assignment.reason,
            "offered_at": assignment.offered_at,
            "retry": False,
        },
        reason=assignment.reason,
        assignment=assignment,
        data=_identity(assignment),
    )
    draft.order(Offer(run_id=draft.state.run_id, assignment=assignment, deadline_at=deadline_at))


def expire(draft: DecisionBuilder, assignment: AssignmentState, reason: str) -> None:
    """Its peer is told; where its time is over and it was not there, its error id is `standings.LATE`."""
    late = {"error_id": standings.LATE} if draft.now >= due(draft.state, assignment) else {}
    _end(draft, "assignment.expired", assignment, AssignmentStatus.EXPIRED, reason, values=late, data=late)
    draft.order(
        Cancel(
            run_id=draft.state.run_id,
            peer_id=assignment.peer_id,
            assignment_id=assignment.assignment_id,
            reason=reason,
        )
    )


def expire_overdue(draft: DecisionBuilder) -> None:
    """Of the work that has outlived its round: whose time is over."""
    while (first := draft.state.carried.due_first) is not None and draft.now >= first[0]:
        assignment = draft.state.carried[first[1]]
        expire(
            draft, assignment, f"{assignment.peer_id} was not done with its {_work(assignment)} in its time"
        )


def settled_round(state: RunState, peer_id: str, role: str) -> int:
    """The newest round in which a peer was asked in this role for an update that a version has in it or may yet have;
    0 if there is none. What the peer keeps from update to update is what it was after that one."""
    waiting = [
        assignment.round
        for held in _held(state)
        for assignment in held.of_peer(peer_id)
        if assignment.counts and assignment.work.role == role
    ]
    return max(state.counted.get((peer_id, role), 0), *waiting, 0)


def lose(draft: DecisionBuilder, peer_id: str, reason: str) -> str | None:
    """Its peer is gone. A training assignment may be offered again if the peer comes back in time."""
    live = [
        assignment
        for held in _held(draft.state)
        for assignment in held.of_peer(peer_id)
        if not assignment.status.ended
    ]
    if not live:
        return f"{peer_id} holds no work of this run"
    for assignment in live:
        told = f"{peer_id} lost its {_work(assignment)}: {reason}"
        retry = not assignment.evaluation
        _end(draft, "assignment.lost", assignment, AssignmentStatus.LOST, told, retry=retry)
    return None


# -- what peers report; each answers why it is ignored, or None ------------------------------------------


def progress(draft: DecisionBuilder, event: AssignmentProgressed) -> str | None:
    """Records a phase that the peer reports; tells why the report is ignored, or None."""
    assignment, ignored = _live(draft.state, event.assignment_id)
    if assignment is None:
        return ignored
    if event.status not in _STEPS:
        return f"{event.status} is not a step of work under way"
    if _ORDER.index(event.status) <= _ORDER.index(assignment.status):
        return f"{assignment.assignment_id} is {assignment.status} already"
    _warn_of_metrics(draft, assignment, event.warnings)
    reason = f"{assignment.peer_id} {_STEPS[event.status]} its {_work(assignment)}"
    times: dict[str, Any] = {}
    table = draft.state.spec.round
    has_own = assignment.deadline_at is not None
    if event.status is AssignmentStatus.PREPARING:
        times["preparing_at"] = draft.now
        times |= {"deadline_at": draft.now + table.prepare_seconds} if has_own else {}
    elif assignment.status is AssignmentStatus.PREPARING:
        times["prepared_at"] = draft.now
        times |= {"deadline_at": draft.now + table.deadline_seconds} if has_own else {}
    if event.status is AssignmentStatus.TRAINING:
        times["training_at"] = draft.now
    elif event.status is AssignmentStatus.UPLOADING:
        times["uploading_at"] = draft.now
    draft.put_assignment(replace(assignment, status=event.status, reason=reason, **times))
    kind = f"assignment.{event.status.lower()}"
    _record(draft, kind, assignment, event.status, reason=reason, values=times)
    return None


def restore(draft: DecisionBuilder, held: Works) -> None:
    """The time that the coordinator was away is given back to those who prepare, and to what has its own deadline."""
    table = draft.state.spec.round
    for assignment in [held[name] for name in held.live]:
        times: dict[str, Any] = {}
        prepares = assignment.status is AssignmentStatus.PREPARING
        if prepares:
            times["preparing_at"] = draft.now
        if assignment.deadline_at is not None:
            times["deadline_at"] = draft.now + (table.prepare_seconds if prepares else table.deadline_seconds)
        if times:
            draft.put_assignment(replace(assignment, **times))
            _record(draft, "", assignment, assignment.status, reason=assignment.reason, values=times)


def deliver(draft: DecisionBuilder, event: UpdateAdmitted, peers: Mapping[str, PeerView]) -> str | None:
    """Records an admitted update; tells why it is ignored, or None."""
    if _is_delivered(draft.state, event):
        return AlreadySo(f"{event.assignment_id} has delivered this update already")
    assignment, ignored = _live(draft.state, event.assignment_id)
    if assignment is None:
        return ignored
    if evaluates(assignment.work.role):
        return f"{assignment.assignment_id} evaluates and has no update to deliver"
    round_ = draft.state.rounds.get(assignment.round)
    if round_ is not None and not round_.takes_updates:
        return f"round {round_.number} is {round_.status}: what it aggregates is settled"
    peer = peers.get(assignment.peer_id)
    if peer is not None and peer.status in (PeerStatus.QUARANTINED, PeerStatus.REVOKED):
        return f"{peer.peer_id} is {peer.status}: its updates are refused"
    update = replace(event.update, metrics=_accept_metrics(draft, assignment, event.update.metrics))
    _end(
        draft,
        "assignment.delivered",
        assignment,
        AssignmentStatus.DELIVERED,
        f"{assignment.peer_id} delivered its update for round {assignment.round}",
        update=update,
        values={
            "digest": update.digest,
            "size_bytes": update.size_bytes,
            "dense_bytes": update.dense_bytes,
            "examples": update.examples,
            "norm": update.norm,
            "source_digest": update.source_digest,
            "metrics_json": metrics.to_json(update.metrics),
        },
        data={"digest": update.digest, "size_bytes": update.size_bytes, "norm": update.norm},
    )
    _compare_sources(draft, assignment, update.source_digest)
    return None


def _is_delivered(state: RunState, event: UpdateAdmitted) -> bool:
    known = find(state, event.assignment_id)
    update = None if known is None else known.update
    return update is not None and update.digest == event.update.digest


def refuse(draft: DecisionBuilder, event: UpdateRefused) -> str | None:
    """Records that admission has rejected an update; tells why that is ignored, or None."""
    assignment, ignored = _live(draft.state, event.assignment_id)
    if assignment is None:
        return ignored
    message = event.message[:MESSAGE_CHARACTERS_MAX]
    reason = f"the update of {assignment.peer_id} for round {assignment.round} was refused: {message}"
    told = {"error_id": event.error_id}
    _end(draft, "assignment.rejected", assignment, AssignmentStatus.REJECTED, reason, values=told, data=told)
    standings.note(draft, assignment, event.error_id, message)
    return None


def fail(draft: DecisionBuilder, event: AssignmentFailed) -> str | None:
    """Records an attempt that failed on the peer; tells why that is ignored, or None."""
    assignment, ignored = _live(draft.state, event.assignment_id)
    if assignment is None:
        return ignored
    message = event.message[:MESSAGE_CHARACTERS_MAX]
    told = {"error_id": event.error_id, "traceback": event.traceback[-TRACEBACK_CHARACTERS_MAX:]}
    retry = event.retry or standings.asked_once_more(draft.state, assignment, event.error_id)
    _end(
        draft,
        "assignment.lost",  # REJECTED is what admission says of an update; here there is none
        assignment,
        AssignmentStatus.LOST,
        f"{assignment.peer_id} failed its {_work(assignment)}: {message}",
        retry=retry and not assignment.evaluation,
        values=told,
        data={**told, "message": message},
    )
    standings.note(draft, assignment, event.error_id, message)
    if assignment.evaluation:
        draft.warn(
            f"evaluate.failed:{assignment.peer_id}",
            f"{assignment.peer_id} could not evaluate version {assignment.work.base}: "
            f"{last_line(event.traceback) or message}",
            round=assignment.round,
            peer_id=assignment.peer_id,
        )
    return None


def evaluated(draft: DecisionBuilder, event: AssignmentEvaluated) -> str | None:
    """Records a peer's evaluation; tells why it is ignored, or None."""
    assignment, ignored = _live(draft.state, event.assignment_id)
    if assignment is None:
        return ignored
    if not evaluates(assignment.work.role):
        return f"{assignment.assignment_id} trains and has no metrics of an evaluation to report"
    _warn_of_metrics(draft, assignment, event.warnings)
    found = _accept_metrics(draft, assignment, event.metrics)
    examples = max(0, event.examples)
    _end(
        draft,
        "assignment.delivered",
        assignment,
        AssignmentStatus.DELIVERED,
        f"{assignment.peer_id} evaluated version {assignment.work.base}",
        metrics=found,
        examples=examples,
        values={
            "metrics_json": metrics.to_json(found),
            "examples": examples,
            "source_digest": event.source_digest,
        },
        data={"metrics": metrics.plain_all(found), "examples": examples},
    )
    _compare_sources(draft, assignment, event.source_digest)
    return None


def _warn_of_metrics(draft: DecisionBuilder, assignment: AssignmentState, sentences: Sequence[str]) -> None:
    """Of what the peer's task gave as metrics and is none, in the peer's words."""
    peer_id = assignment.peer_id
    for number, sentence in enumerate(sentences):
        cause = f"metrics.{assignment.work.role}.{number}:{peer_id}"
        draft.warn(cause, f"{peer_id}: {sentence}", round=assignment.round, peer_id=peer_id)


def _accept_metrics(
    draft: DecisionBuilder, assignment: AssignmentState, reported: Mapping[str, float]
) -> dict[str, float]:
    """Those that a peer may report, the others named."""
    peer_id = assignment.peer_id
    kept, dropped = metrics.accepted(reported)
    if dropped:
        draft.warn(
            f"metrics.dropped:{peer_id}",
            f"{dropped} of the {len(reported)} metrics of {peer_id} are left out: "
            f"{metrics.METRICS_MAX} are kept, with printable names of {metrics.NAME_CHARACTERS_MAX} characters at most",
            round=assignment.round,
            peer_id=peer_id,
        )
    if wrong := metrics.not_finite(kept):
        what = (
            f"evaluation of version {assignment.work.base}" if evaluates(assignment.work.role) else "training"
        )
        draft.warn(
            f"metrics.not_finite.{assignment.work.role}:{peer_id}",
            f"{peer_id} reports of its {what}: {wrong}",
            round=assignment.round,
            peer_id=peer_id,
        )
    return kept


# -- inside ----------------------------------------------------------------------------------------------


def _held(state: RunState) -> Iterator[Works]:
    for round_ in state.rounds.values():
        yield round_.assignments
    yield state.carried
    for evaluation in state.evaluations.values():
        yield evaluation.assignments


def _live(state: RunState, assignment_id: str) -> tuple[AssignmentState | None, str]:
    assignment = find(state, assignment_id)
    if assignment is None:
        return None, f"{assignment_id} belongs to no round or evaluation that is under way"
    if assignment.status.ended:
        return None, f"{assignment_id} has ended: it is {assignment.status}"
    return assignment, ""


def _compare_sources(draft: DecisionBuilder, assignment: AssignmentState, found: str) -> None:
    """Tells of a peer whose code of the task is not the coordinator's: at once, and when it becomes another."""
    known, spec = draft.state.source_digest, draft.state.spec
    if spec.task_sources == "ignore" or not found or not known or found == known:
        return
    peer_id = assignment.peer_id
    draft.warn(
        f"sources.differ:{peer_id}:{found[:12]}",
        f"{peer_id} works with other source code of {spec.task} (digest {found[:12]}) than the coordinator "
        f"({known[:12]}): install the same version on both, then submit the run anew",
        round=assignment.round,
        peer_id=peer_id,
    )


def due(state: RunState, assignment: AssignmentState) -> float:
    """Until when it has time."""
    table = state.spec.round
    if assignment.deadline_at is not None:
        return assignment.deadline_at
    if assignment.evaluation:
        return preparing.work_due(assignment, state.evaluations[assignment.work.base].deadline_at, table)
    round_ = state.rounds[assignment.round]
    if round_.grace_until is not None:
        return round_.grace_until
    return (
        math.inf if round_.deadline_at is None else preparing.work_due(assignment, round_.deadline_at, table)
    )


def _work(assignment: AssignmentState) -> str:
    if evaluates(assignment.work.role):
        return f"evaluation of version {assignment.work.base}"
    return f"work for round {assignment.round}"


def _identity(assignment: AssignmentState) -> dict[str, Any]:
    return {
        "role": assignment.work.role,
        "attempt": assignment.attempt,
        "base_version": assignment.work.base,
        "evaluation": assignment.evaluation,
    }


def _end(
    draft: DecisionBuilder,
    kind: str,
    assignment: AssignmentState,
    status: AssignmentStatus,
    reason: str,
    *,
    values: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    **fields: Any,
) -> None:
    ended = replace(assignment, status=status, reason=reason, **fields)
    draft.put_assignment(ended)
    if not ended.evaluation:
        known = draft.state.history.get(ended.peer_id, NO_HISTORY)
        now_known = known.ends(work_done(ended, draft.now))
        draft.change(history=draft.state.history.set(ended.peer_id, now_known))
    row = {"ended_at": draft.now, "retry": ended.retry, **(values or {})}
    if assignment.deadline_at is not None and not ended.counts:
        row["carried"] = False
    _record(draft, kind, assignment, status, reason=reason, values=row, data=data)


def _record(
    draft: DecisionBuilder,
    kind: str,
    assignment: AssignmentState,
    status: AssignmentStatus,
    *,
    reason: str,
    values: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    draft.record(
        kind,
        "assignment",
        {"assignment_id": assignment.assignment_id},
        before=str(assignment.status),
        values={"state": str(status), "reason": reason, **(values or {})},
        reason=reason,
        assignment=assignment,
        data={**_identity(assignment), **(data or {})},
    )
