"""The preparing phase: a peer loads its data and tries the task out before it trains or evaluates.

It has a time of its own, `round.prepare_seconds`. What it takes is not taken from the round: whoever has prepared has
`round.deadline_seconds` from then on, and below its quorum a round waits for those who are still at it. With its quorum
a round closes as always; one of few peers has the patience to wait for the last of them here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from coordinator.engine.state import (
    AssignmentState,
    AssignmentStatus,
    EvaluationState,
    RoundState,
    RoundStatus,
    RunState,
)
from muster.spec.model import RoundTable

_AT_WORK = (AssignmentStatus.TRAINING, AssignmentStatus.UPLOADING)


def limit(assignment: AssignmentState, table: RoundTable) -> float | None:
    """Until when it may prepare, if it does."""
    if assignment.status is not AssignmentStatus.PREPARING or assignment.preparing_at is None:
        return None
    return assignment.preparing_at + table.prepare_seconds


def limits(assignments: Iterable[AssignmentState], table: RoundTable) -> list[float]:
    """Of those that prepare, soonest first."""
    return sorted(at for each in assignments if (at := limit(each, table)) is not None)


def round_due(round_: RoundState, table: RoundTable) -> float:
    """When a round in which nobody prepares ends: `deadline_seconds` after the last of those at work had prepared."""
    if round_.deadline_at is None:
        return math.inf
    return max(round_.deadline_at, *_starts(round_.assignments.values(), table))


def evaluation_due(evaluation: EvaluationState, table: RoundTable) -> float:
    """When an evaluation ends, whoever has not answered: no round waits for one, so it waits for all who prepare."""
    held = evaluation.assignments.values()
    return max(evaluation.deadline_at, *_starts(held, table), *limits(held, table))


def work_due(assignment: AssignmentState, deadline_at: float, table: RoundTable) -> float:
    """Until when one assignment of a round or an evaluation has time, as its peer is told."""
    at = limit(assignment, table)
    return at if at is not None else max(deadline_at, *_starts([assignment], table))


def times(state: RunState) -> set[float]:
    """At which something of this phase, or what it has postponed, is due."""
    table = state.spec.round
    found = {evaluation_due(evaluation, table) for evaluation in state.evaluations.values()}
    for round_ in state.rounds.values():
        if round_.status is RoundStatus.OPEN and round_.deadline_at is not None:
            found.add(round_due(round_, table))
            found.update(limits(round_.assignments.values(), table))
    return found


def _starts(assignments: Iterable[AssignmentState], table: RoundTable) -> list[float]:
    """How long those that had to prepare and are at work have time."""
    return [-math.inf] + [
        each.prepared_at + table.deadline_seconds
        for each in assignments
        if each.prepared_at is not None and each.status in _AT_WORK
    ]
