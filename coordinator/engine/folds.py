"""What a round aggregates where its schedule says it, and what of its work and updates outlives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from coordinator.engine import assignments, schedule
from coordinator.engine.decision_builder import DecisionBuilder
from coordinator.engine.state import AssignmentState, Fold, RoundState, RunState
from coordinator.engine.works import Works


def fold_of(state: RunState, action: schedule.CloseRound) -> Fold | None:
    """What a schedule's action says of the fold; None where it says nothing."""
    if action.weights is None and not action.work_goes_on:
        return None
    round_ = state.rounds[action.round]
    if action.weights is None:
        return Fold(updates=tuple(a.assignment_id for a in round_.delivered), work_goes_on=True)
    unknown = [name for name in action.weights if not _has_update(state, round_, name)]
    if unknown:
        raise AssertionError(f"a schedule folds what is no update that waits: {', '.join(unknown[:3])}")
    updates = tuple(action.weights)
    return Fold(
        updates=updates,
        weights=tuple(float(action.weights[name]) for name in updates),
        work_goes_on=action.work_goes_on,
    )


def _has_update(state: RunState, round_: RoundState, assignment_id: str) -> bool:
    held = round_.assignments.get(assignment_id) or state.carried.get(assignment_id)
    return held is not None and held.counts


def folded(state: RunState, round_: RoundState) -> tuple[AssignmentState, ...]:
    """What a round that was closed aggregates, by peer id."""
    if round_.fold is None:
        return round_.delivered
    found = [
        round_.assignments.get(name) or state.carried[name]  # nothing else drops an update that waits
        for name in round_.fold.updates
    ]
    return tuple(sorted(found, key=lambda each: (each.peer_id, each.round)))


def expire_rest(draft: DecisionBuilder, number: int, reason: str) -> None:
    """No work outlives its round, but for what its schedule lets go on."""
    works = draft.state.rounds[number].assignments
    for assignment_id in tuple(works.live):
        if works[assignment_id].deadline_at is None:
            assignments.expire(draft, works[assignment_id], reason)


def carry(
    draft: DecisionBuilder, round_: RoundState, updates: Sequence[AssignmentState]
) -> dict[str, AssignmentState]:
    """Gives what outlives the round a deadline of its own: its updates but for these, and its work if that goes on."""
    fold = round_.fold
    if fold is None:
        return {}
    gone = {each.assignment_id for each in updates}
    works = round_.assignments
    left = [each for each in works.delivered if each.assignment_id not in gone]
    left += [works[name] for name in works.live] if fold.work_goes_on else []
    carried: dict[str, AssignmentState] = {}
    for each in left:
        due = assignments.due(draft.state, each)
        moved = replace(each, deadline_at=due)
        write_carried(draft, moved, {"carried": True, "deadline_at": due})
        carried[each.assignment_id] = moved
        draft.put_assignment(moved)
    return carried


def carried_after(
    state: RunState, more: Mapping[str, AssignmentState], gone: Sequence[AssignmentState]
) -> Works:
    """What is carried once these are, and those are gone."""
    held = state.carried
    for each in gone:
        if each.assignment_id in held:
            held = held.without(each.assignment_id)
    for each in more.values():
        held = held.put(each)
    return held


def write_carried(draft: DecisionBuilder, assignment: AssignmentState, values: Mapping[str, Any]) -> None:
    draft.record(
        "",
        "assignment",
        {"assignment_id": assignment.assignment_id},
        before=str(assignment.status),
        values=values,
        reason=assignment.reason,
    )


def counted_after(state: RunState, updates: Sequence[AssignmentState]) -> dict[tuple[str, str], int]:
    """`RunState.counted` once a version has these updates in it."""
    counted = dict(state.counted)
    for each in updates:
        lineage = (each.peer_id, each.work.role)
        counted[lineage] = max(each.round, counted.get(lineage, 0))
    return counted
