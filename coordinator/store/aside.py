"""The end of a run that cannot be read back: what its rows say is not looked at, only which of them are live."""

from __future__ import annotations

from sqlalchemy import Connection, update

from coordinator.engine.state import (
    ADMIN,
    AssignmentStatus,
    EvaluationStatus,
    RoundStatus,
    RunStatus,
    Transition,
)
from coordinator.store import tables
from coordinator.store.load import not_ended
from coordinator.store.write import write_transitions


def end_run(connection: Connection, run_id: str, reason: str, at: float) -> int:
    """Sets the run CANCELLED, and what is under way in it to a state that has ended; one event tells it. Gives
    that event's number."""
    told = {"reason": reason, "ended_at": at}
    rounds, assignments, evaluations = tables.ROUNDS, tables.ASSIGNMENTS, tables.EVALUATIONS
    connection.execute(
        update(rounds)
        .where(rounds.c.run_id == run_id, not_ended(rounds, RoundStatus))
        .values(state=RoundStatus.FAILED.value, **told)
    )
    connection.execute(
        update(assignments)
        .where(assignments.c.run_id == run_id, not_ended(assignments, AssignmentStatus))
        .values(state=AssignmentStatus.EXPIRED.value, **told)
    )
    connection.execute(
        update(evaluations)
        .where(evaluations.c.run_id == run_id)
        .values(state=EvaluationStatus.FINISHED.value, own_pending=False)
    )
    return write_transitions(connection, [ended_transition(run_id, reason, at)])[0]


def ended_transition(run_id: str, reason: str, at: float) -> Transition:
    """The run's own row, whatever state it is in."""
    state = RunStatus.CANCELLED.value
    return Transition(
        kind="run.cancelled",
        entity="run",
        key={"run_id": run_id},
        before="",
        values={"state": state, "reason": reason, "ended_at": at},
        reason=reason,
        at=at,
        run_id=run_id,
        data={"state": state},
        actor=ADMIN,
    )
