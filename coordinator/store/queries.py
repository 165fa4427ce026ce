"""What the admin service and the command line ask; each answer is one consistent state of the database."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from inspect import signature
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    and_,
    cast,
    func,
    literal,
    not_,
    or_,
    select,
    union,
)

from coordinator.engine.standings import LATE
from coordinator.engine.state import Fold
from coordinator.store import tables
from coordinator.store.rows import (
    AssignmentRow,
    EventRow,
    ModelRow,
    PeerRecord,
    PeerRow,
    RoundRow,
    RoundTotals,
    Row,
    RunRow,
    WarningRow,
)
from exchange.names import DELTA
from muster.task import metrics
from muster.work import UNREADABLE, Work

RUNS, ROUNDS, ASSIGNMENTS, MODELS = tables.RUNS, tables.ROUNDS, tables.ASSIGNMENTS, tables.MODELS
EVALUATIONS, PEERS, EVENTS, TRANSFERS = tables.EVALUATIONS, tables.PEERS, tables.EVENTS, tables.TRANSFERS

Answer = TypeVar("Answer")


@cache
def _names(kind: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(signature(kind).parameters)


def as_row(kind: Callable[..., Answer], row: Row, **more: object) -> Answer:
    """Columns to fields by name; a column `x_json` gives the field `x`."""
    values: dict[str, object] = {}
    for name in _names(kind):
        if name in row:
            values[name] = row[name]
        elif name == "metrics" and "metrics_json" in row:
            values[name] = metrics.from_json(row["metrics_json"])
        elif name == "fold":
            values[name] = _fold(row["fold_json"])
        elif name == "work":
            values[name] = _work(row["work_json"])
        elif f"{name}_json" in row:
            values[name] = read_json(row[f"{name}_json"], {})
    values.update(more)
    return kind(**values)


def read_json(text: str | None, empty: Any) -> Any:
    """What cannot be read is shown as nothing, so that one damaged row costs no list."""
    try:
        found = json.loads(text or "null")
    except (ValueError, RecursionError):
        return empty
    return found if isinstance(found, type(empty)) else empty


def _sum(column: ColumnElement[Any], *where: ColumnElement[bool]) -> ColumnElement[int]:
    total = select(func.coalesce(func.sum(column), 0)).where(*where).scalar_subquery()
    return cast(total, BigInteger)  # PostgreSQL sums integers into decimals


def _bytes(direction: str, *where: ColumnElement[bool]) -> ColumnElement[int]:
    return _sum(TRANSFERS.c.bytes, TRANSFERS.c.direction == direction, *where).label(f"bytes_{direction}")


def _metrics(*where: ColumnElement[bool]) -> ColumnElement[Any]:
    """Of the newest evaluation that has any."""
    found = (
        select(EVALUATIONS.c.metrics_json)
        .where(EVALUATIONS.c.metrics_json != "{}", *where)
        .order_by(EVALUATIONS.c.version.desc())
        .limit(1)
    )
    return found.scalar_subquery().label("metrics_json")


def _digest(run_id: ColumnElement[str], version: ColumnElement[int]) -> ColumnElement[str]:
    found: ScalarSelect[str] = (
        select(MODELS.c.digest)
        .where(MODELS.c.run_id == run_id, MODELS.c.version == version)
        .scalar_subquery()
    )
    return func.coalesce(found, "").label("model_digest")


# -- runs ----------------------------------------------------------------------------------------------------


def runs(connection: Connection, *where: ColumnElement[bool], limit: int | None = None) -> list[RunRow]:
    """Newest first."""
    of_run = TRANSFERS.c.run_id == RUNS.c.run_id
    dense = _sum(ASSIGNMENTS.c.dense_bytes, ASSIGNMENTS.c.run_id == RUNS.c.run_id)
    found = connection.execute(
        select(
            RUNS,
            _digest(RUNS.c.run_id, RUNS.c.model_version),
            _bytes("up", of_run),
            _bytes("down", of_run),
            dense.label("bytes_up_dense"),
            _metrics(EVALUATIONS.c.run_id == RUNS.c.run_id),
        )
        .where(*where)
        .order_by(RUNS.c.created_at.desc(), RUNS.c.run_id)
        .limit(limit)
    )
    return [as_row(RunRow, row) for row in found.mappings()]


def warnings(connection: Connection, run_id: str) -> list[WarningRow]:
    """Newest last; the engine bounds how many there are of a run."""
    table = tables.WARNINGS
    found = connection.execute(
        select(table).where(table.c.run_id == run_id).order_by(table.c.last_at, table.c.cause)
    )
    return [as_row(WarningRow, row) for row in found.mappings()]


def run_states(connection: Connection) -> list[str]:
    return list(connection.execute(select(RUNS.c.state)).scalars())


def behind_run(created_at: float, run_id: str) -> ColumnElement[bool]:
    """In the order of `runs`."""
    of_then = and_(RUNS.c.created_at == created_at, RUNS.c.run_id > run_id)
    return or_(RUNS.c.created_at < created_at, of_then)


# -- rounds and assignments ----------------------------------------------------------------------------------


def rounds(connection: Connection, *where: ColumnElement[bool], limit: int | None = None) -> list[RoundRow]:
    """Without their assignments, oldest first."""
    of_round = (TRANSFERS.c.run_id == ROUNDS.c.run_id, TRANSFERS.c.round == ROUNDS.c.number)
    found = connection.execute(
        select(
            ROUNDS,
            _digest(ROUNDS.c.run_id, ROUNDS.c.model_version),
            _bytes("up", *of_round),
            _bytes("down", *of_round),
            _metrics(EVALUATIONS.c.run_id == ROUNDS.c.run_id, EVALUATIONS.c.round == ROUNDS.c.number),
        )
        .where(*where)
        .order_by(ROUNDS.c.run_id, ROUNDS.c.number)
        .limit(limit)
    )
    return [
        as_row(RoundRow, row, cohort=tuple(read_json(row["cohort_json"], [])), assignments=())
        for row in found.mappings()
    ]


def assignments(
    connection: Connection, *where: ColumnElement[bool], limit: int | None = None
) -> list[AssignmentRow]:
    """Those of the round before those of its version's evaluation; by peer, then attempt."""
    order = (ASSIGNMENTS.c.evaluation, ASSIGNMENTS.c.peer_id, ASSIGNMENTS.c.attempt)
    # Of a page, the keys are sorted first: with their tracebacks all rows of a round are far more to carry about.
    keys = select(ASSIGNMENTS.c.assignment_id).where(*where).order_by(*order).limit(limit)
    chosen = where if limit is None else (ASSIGNMENTS.c.assignment_id.in_(keys),)
    found = connection.execute(select(ASSIGNMENTS).where(*chosen).order_by(*order))
    return [as_row(AssignmentRow, row) for row in found.mappings()]


def _fold(text: str) -> Fold | None:
    """What cannot be read is shown as nothing."""
    try:
        return Fold.from_json(text)
    except UNREADABLE:
        return None


def _work(text: str) -> Work:
    """What cannot be read is shown as work without a role."""
    try:
        return Work.from_json(text)
    except UNREADABLE:
        return Work(role="", base=0)


def behind_assignment(evaluation: int, peer_id: str, attempt: int) -> ColumnElement[bool]:
    """In the order of `assignments`."""
    table = ASSIGNMENTS.c
    of_peer = and_(table.peer_id == peer_id, table.attempt > attempt)
    behind = or_(table.peer_id > peer_id, of_peer)
    return and_(table.evaluation, behind) if evaluation else or_(table.evaluation, behind)


def round_totals(connection: Connection, run_id: str, number: int) -> RoundTotals:
    of_round = (ASSIGNMENTS.c.run_id == run_id, ASSIGNMENTS.c.round == number)
    trained = (*of_round, ASSIGNMENTS.c.digest != "", ASSIGNMENTS.c.state == "DELIVERED")
    dense = _sum(ASSIGNMENTS.c.dense_bytes, *of_round).label("bytes_up_dense")
    count = select(func.count()).select_from(ASSIGNMENTS).where(*trained).scalar_subquery()
    (row,) = connection.execute(select(dense, count.label("delivered"))).mappings().all()
    return as_row(RoundTotals, row)


def round_(connection: Connection, run_id: str, number: int) -> RoundRow | None:
    """With its assignments."""
    found = rounds(connection, ROUNDS.c.run_id == run_id, ROUNDS.c.number == number)
    if not found:
        return None
    of_round = (ASSIGNMENTS.c.run_id == run_id, ASSIGNMENTS.c.round == number)
    return replace(found[0], assignments=tuple(assignments(connection, *of_round)))


# -- peers ---------------------------------------------------------------------------------------------------


def peer_records(connection: Connection) -> list[PeerRecord]:
    found = connection.execute(select(PEERS).order_by(PEERS.c.peer_id))
    return [as_row(PeerRecord, row) for row in found.mappings()]


def peer_states(connection: Connection) -> list[str]:
    return list(connection.execute(select(PEERS.c.state)).scalars())


def named_peers(connection: Connection) -> frozenset[str]:
    found = union(select(ASSIGNMENTS.c.peer_id), select(tables.STANDINGS.c.peer_id))
    return frozenset(connection.execute(found).scalars())


def _newest_sources() -> ColumnElement[str]:
    """Of each peer's newest work that tells its source code."""
    found = (
        select(ASSIGNMENTS.c.source_digest)
        .where(ASSIGNMENTS.c.peer_id == PEERS.c.peer_id, ASSIGNMENTS.c.source_digest != "")
        .order_by(ASSIGNMENTS.c.offered_at.desc(), ASSIGNMENTS.c.assignment_id)
        .limit(1)
        .scalar_subquery()
    )
    return func.coalesce(found, "")


def peers(connection: Connection, *where: ColumnElement[bool], limit: int | None = None) -> list[PeerRow]:
    def updates(state: str, *more: ColumnElement[bool]) -> ColumnElement[int]:
        return (
            select(func.count())
            .select_from(ASSIGNMENTS)
            .where(
                ASSIGNMENTS.c.peer_id == PEERS.c.peer_id,
                ASSIGNMENTS.c.state == state,
                not_(ASSIGNMENTS.c.evaluation),
                *more,
            )
            .scalar_subquery()
        )

    of_peer = TRANSFERS.c.peer_id == PEERS.c.peer_id
    found = connection.execute(
        select(
            PEERS,
            _newest_sources().label("source_digest"),
            updates("DELIVERED").label("updates_delivered"),
            updates("REJECTED").label("updates_rejected"),
            updates("LOST", ASSIGNMENTS.c.error_id != "").label("updates_failed"),
            (
                updates("LOST", ASSIGNMENTS.c.error_id == "")
                + updates("EXPIRED", ASSIGNMENTS.c.error_id == LATE)
            ).label("updates_missed"),
            _bytes("up", of_peer),
            _bytes("down", of_peer),
        )
        .where(*where)
        .order_by(PEERS.c.peer_id)
        .limit(limit)
    )
    return [as_row(PeerRow, row) for row in found.mappings()]


# -- models --------------------------------------------------------------------------------------------------


def models(
    connection: Connection,
    *where: ColumnElement[bool],
    newest: int | None = None,
    limit: int | None = None,
) -> list[ModelRow]:
    """Oldest first, with `limit` only so many; with `newest`, only so many of the last ones, newest first."""
    statement: Select[Any] = select(
        MODELS,
        _metrics(EVALUATIONS.c.run_id == MODELS.c.run_id, EVALUATIONS.c.version == MODELS.c.version),
    ).where(*where)
    if newest is None:
        statement = statement.order_by(MODELS.c.run_id, MODELS.c.version).limit(limit)
    else:
        statement = statement.order_by(MODELS.c.version.desc()).limit(newest)
    return [as_row(ModelRow, row) for row in connection.execute(statement).mappings()]


def optimizer_states(connection: Connection, run_id: str, version: int) -> Mapping[str, str]:
    """The server optimizer's state vectors after `version` was made: name to blob digest."""
    states = tables.OPTIMIZER_STATES
    found = connection.execute(
        select(states.c.name, states.c.digest)
        .where(states.c.run_id == run_id, states.c.version == version, states.c.name != DELTA)
        .order_by(states.c.name)
    )
    return {row.name: row.digest for row in found}


def deltas(connection: Connection, run_id: str, after: int, upto: int) -> list[str]:
    """Digests of the deltas that make versions `after` + 1 to `upto`, in order, as far as they are kept."""
    states = tables.OPTIMIZER_STATES
    found = connection.execute(
        select(states.c.digest)
        .where(states.c.run_id == run_id, states.c.name == DELTA, ~states.c.blob_gone)
        .where(states.c.version > after, states.c.version <= upto)
        .order_by(states.c.version)
    )
    return list(found.scalars())


def version_with(connection: Connection, run_id: str, names: Sequence[str], digest: str) -> int | None:
    """The newest version that has this among its states of these names."""
    states = tables.OPTIMIZER_STATES
    found = connection.execute(
        select(func.max(states.c.version)).where(
            states.c.run_id == run_id, states.c.name.in_(names), states.c.digest == digest
        )
    )
    version: int | None = found.scalar_one()
    return version


# -- events --------------------------------------------------------------------------------------------------


def events(
    connection: Connection, *where: ColumnElement[bool], limit: int, newest: bool = False
) -> list[EventRow]:
    """In order. At most `limit`, counted from the first, or with `newest` from the last."""
    order = EVENTS.c.sequence.desc() if newest else EVENTS.c.sequence
    found = connection.execute(select(EVENTS).where(*where).order_by(order).limit(literal(limit)))
    rows = [as_row(EventRow, row, data=read_json(row["data_json"], {})) for row in found.mappings()]
    return rows[::-1] if newest else rows


def newest_sequence(connection: Connection) -> int:
    found: int = connection.execute(select(func.coalesce(func.max(EVENTS.c.sequence), 0))).scalar_one()
    return found


def event_sequence(connection: Connection, assignment_id: str, kind: str) -> int | None:
    found: int | None = connection.execute(
        select(func.max(EVENTS.c.sequence)).where(
            EVENTS.c.assignment_id == assignment_id, EVENTS.c.kind == kind
        )
    ).scalar_one()
    return found
