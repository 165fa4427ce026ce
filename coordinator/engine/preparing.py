"""The preparing phase: a peer loads its data and tries the task out before it trains or evaluates.

It has a time of its own, `round.prepare_seconds`. What it takes is not taken from the round: whoever has prepared has
`round.deadline_seconds` from then on, and below its quorum a round waits for those who are still at it. With its quorum
a round closes as always; one of few peers has the patience to wait for the last of them here too.
"""

from __future__ import annotations

import math

from coordinator.engine.state import (
    AssignmentState,
    AssignmentStatus,
    EvaluationState,
    RoundState,
    RoundStatus,
    RunState,
)
from coordinator.engine.works import Works
from muster.spec.model import RoundTable

_AT_WORK = (AssignmentStatus.TRAINING, AssignmentStatus.UPLOADING)


def limit(assignment: AssignmentState, table: RoundTable) -> float | None:
    """Until when it may prepare, if it does."""
    if assignment.status is not AssignmentStatus.PREPARING or assignment.preparing_at is None:
        return None
    return assignment.preparing_at + table.prepare_seconds


def first_limit(works: Works, table: RoundTable) -> float | None:
    """Until when the first of those that prepare may do so."""
    since = works.preparing_since
    return None if since is None else since + table.prepare_seconds


def last_limit(works: Works, table: RoundTable) -> float | None:
    """Until when the last of them may."""
    since = works.preparing_last
    return None if since is None else since + table.prepare_seconds


def round_due(round_: RoundState, table: RoundTable) -> float:
    """When a round in which nobody prepares ends: `deadline_seconds` after the last of those at work had prepared."""
    if round_.deadline_at is None:
        return math.inf
    return max(round_.deadline_at, _starts(round_.assignments, table))


def evaluation_due(evaluation: EvaluationState, table: RoundTable) -> float:
    """When an evaluation ends, whoever has not answered: no round waits for one, so it waits for all who prepare."""
    held = evaluation.assignments
    preparing = last_limit(held, table)
    return max(evaluation.deadline_at, _starts(held, table), -math.inf if preparing is None else preparing)


def work_due(assignment: AssignmentState, deadline_at: float, table: RoundTable) -> float:
    """Until when one assignment of a round or an evaluation has time, as its peer is told."""
    if assignment.deadline_at is not None:
        return assignment.deadline_at
    at = limit(assignment, table)
    if at is not None:
        return at
    if assignment.prepared_at is None or assignment.status not in _AT_WORK:
        return deadline_at
    return max(deadline_at, assignment.prepared_at + table.deadline_seconds)


def times(state: RunState) -> set[float]:
    """At which something of this phase, or what it has postponed, is due."""
    table = state.spec.round
    found = {evaluation_due(evaluation, table) for evaluation in state.evaluations.values()}
    for round_ in state.rounds.values():
        if round_.status is RoundStatus.OPEN and round_.deadline_at is not None:
            found.add(round_due(round_, table))
            first = first_limit(round_.assignments, table)
            found.update(() if first is None else (first,))
    return found


def _starts(works: Works, table: RoundTable) -> float:
    """How long the last of those that had to prepare and are at work has time."""
    last = works.prepared_last
    return -math.inf if last is None else last + table.deadline_seconds
