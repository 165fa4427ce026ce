"""`why RUN`: what a live run is waiting for, in one sentence, and the facts behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coordinator.engine import preparing
from coordinator.engine.state import (
    AssignmentState,
    AssignmentStatus,
    PeerView,
    RoundState,
    RoundStatus,
    RunState,
    RunStatus,
)
from muster.spec.model import RoundTable
from muster.work import evaluates

_DOING = {
    AssignmentStatus.OFFERED: "has been offered the work",
    AssignmentStatus.ACCEPTED: "has accepted and is fetching the model",
    AssignmentStatus.PREPARING: "is preparing (loading its data)",
    AssignmentStatus.TRAINING: "is training",
    AssignmentStatus.UPLOADING: "is uploading",
    AssignmentStatus.DELIVERED: "has delivered",
    AssignmentStatus.REJECTED: "was rejected",
    AssignmentStatus.EXPIRED: "came too late",
    AssignmentStatus.LOST: "was lost",
}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What `muster why` shows of a run."""

    sentence: str
    details: Sequence[str]


def explain(
    run: RunState, peers: Mapping[str, PeerView], now: float, bytes_held: Callable[[str], int]
) -> Explanation:
    """`bytes_held` tells how much of an assignment's upload lies in the spool."""
    evaluating = [
        _assignment(assignment, peers, now, bytes_held)
        for evaluation in run.evaluations.values()
        for assignment in evaluation.assignments.values()
        if not assignment.status.ended
    ]
    if run.status is RunStatus.QUEUED:
        return Explanation(sentence=f"{run.reason}, since {_ago(now, run.created_at)}", details=[])
    if run.status is not RunStatus.RUNNING or not run.rounds:
        return Explanation(sentence=run.reason, details=[*evaluating, *_aside(run), *_absent(run, peers)])
    sentences: list[str] = []
    details: list[str] = []
    for number in sorted(run.rounds):
        round_state = run.rounds[number]
        sentences.append(_round(round_state, run.spec.round, now))
        for assignment in round_state.assignments.values():
            details.append(_assignment(assignment, peers, now, bytes_held))
    details += [_assignment(assignment, peers, now, bytes_held) for assignment in run.carried.values()]
    details += evaluating
    return Explanation(sentence="; ".join(sentences), details=[*details, *_aside(run), *_absent(run, peers)])


def _ago(now: float, at: float) -> str:
    return f"{max(0.0, now - at):.0f} s"


def _round(state: RoundState, table: RoundTable, now: float) -> str:
    if state.status is RoundStatus.AGGREGATING:
        count = state.assignments.delivered_count if state.fold is None else len(state.fold.updates)
        return f"round {state.number} is aggregating {count} updates"
    waiting = state.assignments.live_count
    here = state.assignments.delivered_count
    text = f"round {state.number} has {here} of the {state.quorum} updates that its quorum needs"
    text += f" and waits for {waiting} peer{'s' * (waiting != 1)}"
    limit, count = preparing.last_limit(state.assignments, table), state.assignments.preparing_count
    if limit is not None and here < state.quorum:
        those = "1 of them is" if count == 1 else f"{count} of them are"
        return f"{text}; {those} preparing (loading data), for {max(0.0, limit - now):.0f} s more at most"
    until = state.grace_until if state.grace_until is not None else preparing.round_due(state, table)
    if until < math.inf:
        what = "grace ends" if state.grace_until is not None else "deadline"
        text += f"; {what} in {max(0.0, until - now):.0f} s"
    return text


def _assignment(
    assignment: AssignmentState, peers: Mapping[str, PeerView], now: float, bytes_held: Callable[[str], int]
) -> str:
    text = f"{assignment.peer_id} {_DOING[assignment.status]}"
    if assignment.status is AssignmentStatus.PREPARING and assignment.preparing_at is not None:
        text += f" since {_ago(now, assignment.preparing_at)}"
    if evaluates(assignment.work.role):
        text += f" to evaluate version {assignment.work.base}"
    if assignment.attempt > 1:
        text += f" (attempt {assignment.attempt})"
    if assignment.status.ended:
        return f"{text}: {assignment.reason}"
    if assignment.status is AssignmentStatus.UPLOADING:
        text += f", {bytes_held(assignment.assignment_id)} bytes are here"
    peer = peers.get(assignment.peer_id)
    if peer is not None and not peer.connected:
        text += f"; it is {peer.status.value} and not connected"
    return f"{text}; offered {max(0.0, now - assignment.offered_at):.0f} s ago"


def _aside(run: RunState) -> list[str]:
    """Who is asked no more, and until when."""
    return [
        f"{standing.peer_id} is set aside since round {standing.round}: {standing.cause}; asked again once its daemon "
        f"starts anew, or: muster run resume {run.run_id}"
        for standing in run.standings.values()
        if standing.aside
    ]


def _absent(run: RunState, peers: Mapping[str, PeerView]) -> list[str]:
    """Peers that could take part if they were there; only of interest while the run waits for some."""
    if run.rounds:
        return []
    return [f"{peer.peer_id} is {peer.status.value}" for peer in peers.values() if not peer.connected]
