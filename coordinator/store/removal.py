"""A run that has ended is forgotten whole: its rows, and what only they name."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, select

from coordinator.engine.state import ADMIN, RunStatus, Transition
from coordinator.store import blobs, tables
from coordinator.store.write import write_events
from muster.errors import NotFoundError, StateError


def prune_peer_events(connection: Connection, keep: int) -> None:
    """Keeps so many of each peer's own events, the newest, and none of names that are forgotten; those of runs stay as
    long as their runs. The newest event of all stays: the next takes its number from it."""
    events = tables.EVENTS
    nth = func.row_number().over(partition_by=events.c.peer_id, order_by=events.c.sequence.desc())
    of_peers = select(events.c.sequence, nth.label("nth")).where(
        events.c.run_id == "", events.c.peer_id != ""
    )
    ranked = of_peers.subquery()
    old = select(ranked.c.sequence).where(ranked.c.nth > keep)
    connection.execute(delete(events).where(events.c.sequence.in_(old)))
    newest = select(func.max(events.c.sequence)).scalar_subquery()
    known = select(tables.PEERS.c.peer_id)
    connection.execute(
        delete(events).where(
            events.c.run_id == "",
            events.c.peer_id != "",
            events.c.peer_id.not_in(known),
            events.c.sequence < newest,
        )
    )


def remove_run(connection: Connection, run_id: str, at: float, reason: str) -> tuple[frozenset[str], int]:
    """Gives the digests that nothing names any more, and the number of the event that tells of it.

    Raises `NotFoundError` "run.not_found", `StateError` "run.live".
    """
    runs = tables.RUNS
    state = connection.execute(select(runs.c.state).where(runs.c.run_id == run_id)).scalar_one_or_none()
    check_removable(run_id, state)
    before = blobs.live(connection)
    for table in reversed(tables.METADATA.sorted_tables):  # what refers to others goes before them
        if "run_id" in table.c:
            connection.execute(delete(table).where(table.c.run_id == run_id))
    sequence = write_events(connection, [removed_transition(run_id, at, reason)])[0]
    return before - blobs.live(connection), sequence


def check_removable(run_id: str, state: str | None) -> None:
    """Raises `NotFoundError` "run.not_found" (`state` is None), `StateError` "run.live"."""
    if state is None:
        raise NotFoundError("run.not_found", f"no run {run_id!r}", fix="muster run list")
    if not RunStatus(state).ended:
        raise StateError(
            "run.live",
            f"run {run_id!r} is {state} and is not removed",
            fix=f"end it first: muster run stop {run_id}",
        )


def removed_transition(run_id: str, at: float, reason: str) -> Transition:
    """What tells that a run was removed; it belongs to no run. Of it only the event is written."""
    return Transition(
        kind="run.removed",
        entity="run",
        key={"run_id": run_id},
        before=None,
        values={},
        reason=reason,
        at=at,
        data={"run_id": run_id},
        actor=ADMIN,
    )
