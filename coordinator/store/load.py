"""Rebuilds what the engine holds in memory from the rows that its transitions wrote."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, RowMapping, Table, and_, func, select

from coordinator.engine.state import (
    AssignmentState,
    AssignmentStatus,
    EvaluationState,
    EvaluationStatus,
    ModelVersion,
    PeerStanding,
    Rest,
    RoundState,
    RoundStatus,
    RunState,
    RunStatus,
    WarningState,
    versions_in_use,
)
from coordinator.store import tables
from exchange.facts import UpdateFacts
from muster.spec.model import RunSpec
from muster.task.metrics import from_json
from muster.texts import one_line

Groups = Mapping[str, Sequence[RowMapping]]


def load_runs(connection: Connection, unread: dict[str, str] | None = None) -> list[RunState]:
    """Runs that have not ended, oldest first, each exactly as it stood after the last commit.

    `unread` takes those whose rows cannot be read, with the reason; without it, one of them raises.
    """
    runs, rounds, evaluations = tables.RUNS, tables.ROUNDS, tables.EVALUATIONS
    rows = (
        connection.execute(
            select(runs)
            .where(runs.c.state.not_in([state.value for state in RunStatus if state.ended]))
            .order_by(runs.c.created_at, runs.c.run_id)
        )
        .mappings()
        .all()
    )
    live_rounds = _of_live_runs(connection, rounds, not_ended(rounds, RoundStatus))
    live_evaluations = _of_live_runs(
        connection, evaluations, evaluations.c.state == EvaluationStatus.RUNNING.value
    )
    assignments = _live_assignments(connection)
    loaded: list[RunState] = []
    for row in rows:
        held = [groups.get(row["run_id"], ()) for groups in (live_rounds, live_evaluations, assignments)]
        try:
            loaded.append(_run(connection, row, *held))
        except (
            ValueError,
            TypeError,
            LookupError,
        ) as error:  # whatever a damaged row or another version's holds
            if unread is None:
                raise
            unread[row["run_id"]] = one_line(f"what is stored of it cannot be read here: {error!r}")
    return loaded


def not_ended(
    table: Table, status: type[RunStatus] | type[RoundStatus] | type[AssignmentStatus]
) -> ColumnElement[bool]:
    return table.c.state.in_([state.value for state in status if not state.ended])


def _of_live_runs(connection: Connection, table: Table, *where: ColumnElement[bool]) -> Groups:
    runs = tables.RUNS
    found = connection.execute(
        select(table)
        .join(runs, runs.c.run_id == table.c.run_id)
        .where(not_ended(runs, RunStatus), *where)
        .order_by(*table.primary_key.columns)
    )
    groups: dict[str, list[RowMapping]] = defaultdict(list)
    for row in found.mappings():
        groups[row["run_id"]].append(row)
    return groups


def _live_assignments(connection: Connection) -> Groups:
    """Of live rounds and of live evaluations, those that have ended among them."""
    assignments, rounds, evaluations = tables.ASSIGNMENTS, tables.ROUNDS, tables.EVALUATIONS
    of_round = (
        rounds,
        and_(rounds.c.run_id == assignments.c.run_id, rounds.c.number == assignments.c.round),
        (not_ended(rounds, RoundStatus), assignments.c.role == "train"),
    )
    of_evaluation = (
        evaluations,
        and_(
            evaluations.c.run_id == assignments.c.run_id,
            evaluations.c.round == assignments.c.round,
            evaluations.c.version == assignments.c.base_version,
        ),
        (evaluations.c.state == EvaluationStatus.RUNNING.value, assignments.c.role == "evaluate"),
    )
    groups: dict[str, list[RowMapping]] = defaultdict(list)
    for table, joined, where in (of_round, of_evaluation):
        found = select(assignments).join(table, joined).where(*where).order_by(assignments.c.assignment_id)
        for row in connection.execute(found).mappings():
            groups[row["run_id"]].append(row)
    return groups


def _run(
    connection: Connection,
    row: RowMapping,
    round_rows: Iterable[RowMapping],
    evaluation_rows: Iterable[RowMapping],
    assignment_rows: Iterable[RowMapping],
) -> RunState:
    by_round: dict[int, dict[str, AssignmentState]] = defaultdict(dict)
    by_version: dict[int, dict[str, AssignmentState]] = defaultdict(dict)
    for assignment in map(_assignment, assignment_rows):
        if assignment.role == "train":
            by_round[assignment.round][assignment.assignment_id] = assignment
        else:
            by_version[assignment.base_version][assignment.assignment_id] = assignment
    rounds = {r["number"]: _round(r, by_round[r["number"]]) for r in round_rows}
    evaluations = {e["version"]: _evaluation(e, by_version[e["version"]]) for e in evaluation_rows}
    newest = _models(connection, row["run_id"], {row["model_version"]} - {None})
    model = newest.get(row["model_version"])
    return RunState(
        run_id=row["run_id"],
        spec=RunSpec.model_validate_json(row["spec_json"]),
        status=RunStatus(row["state"]),
        reason=row["reason"],
        created_at=row["created_at"],
        source_digest=row["source_digest"],
        model=model,
        rounds=rounds,
        evaluations=evaluations,
        models=_models(connection, row["run_id"], versions_in_use(model, rounds, evaluations)),
        counted=_counted(connection, row["run_id"]),
        standings=_standings(connection, row["run_id"]),
        rest=_rest(row),
        last_round=row["last_round"],
        committed=row["committed"],
        skipped=row["skipped"],
        skipped_in_row=row["skipped_in_row"],
        warnings=_warnings(connection, row["run_id"]),
    )


def _warnings(connection: Connection, run_id: str) -> dict[str, WarningState]:
    warnings = tables.WARNINGS
    found = connection.execute(select(warnings).where(warnings.c.run_id == run_id))
    return {
        row["cause"]: WarningState(**{name: value for name, value in row.items() if name != "run_id"})
        for row in found.mappings()
    }


def _models(connection: Connection, run_id: str, versions: Iterable[int]) -> dict[int, ModelVersion]:
    models = tables.MODELS
    found = connection.execute(
        select(models)
        .where(models.c.run_id == run_id, models.c.version.in_(sorted(versions)))
        .order_by(models.c.version)
    )
    return {
        row["version"]: ModelVersion(
            version=row["version"],
            round=row["round"],
            digest=row["digest"],
            size_bytes=row["size_bytes"],
            layout_digest=row["layout_digest"],
        )
        for row in found.mappings()
    }


def _counted(connection: Connection, run_id: str) -> dict[str, int]:
    """The last committed round, by peer, that has an update of its in it."""
    assignments, rounds = tables.ASSIGNMENTS, tables.ROUNDS
    found = connection.execute(
        select(assignments.c.peer_id, func.max(assignments.c.round).label("last"))
        .join(rounds, and_(rounds.c.run_id == assignments.c.run_id, rounds.c.number == assignments.c.round))
        .where(
            assignments.c.run_id == run_id,
            assignments.c.role == "train",
            assignments.c.state == AssignmentStatus.DELIVERED.value,
            rounds.c.state == RoundStatus.COMMITTED.value,
        )
        .group_by(assignments.c.peer_id)
    )
    return {row.peer_id: row.last for row in found}


def _standings(connection: Connection, run_id: str) -> dict[str, PeerStanding]:
    standings = tables.STANDINGS
    found = connection.execute(
        select(standings).where(standings.c.run_id == run_id).order_by(standings.c.peer_id)
    )
    return {
        row["peer_id"]: PeerStanding(
            peer_id=row["peer_id"],
            error_id=row["error_id"],
            cause=row["cause"],
            round=row["round"],
            in_row=row["in_row"],
            aside=row["aside"],
            instance=row["instance"],
            times=row["times"],
        )
        for row in found.mappings()
    }


def _rest(row: RowMapping) -> Rest | None:
    return None if row["rest_until"] is None else Rest(until=row["rest_until"], present=row["rest_present"])


def _round(row: RowMapping, assignments: Mapping[str, AssignmentState]) -> RoundState:
    return RoundState(
        number=row["number"],
        status=RoundStatus(row["state"]),
        reason=row["reason"],
        base_version=row["base_version"],
        cohort=tuple(json.loads(row["cohort_json"])),
        needed=row["needed"],
        quorum=row["quorum"],
        planned_at=row["planned_at"],
        opened_at=row["opened_at"],
        deadline_at=row["deadline_at"],
        grace_until=row["grace_until"],
        assignments=assignments,
    )


def _evaluation(row: RowMapping, assignments: Mapping[str, AssignmentState]) -> EvaluationState:
    return EvaluationState(
        version=row["version"],
        round=row["round"],
        deadline_at=row["deadline_at"],
        assignments=assignments,
        own_pending=row["own_pending"],
        own_metrics=from_json(row["own_metrics_json"]),
    )


def _assignment(row: RowMapping) -> AssignmentState:
    metrics = from_json(row["metrics_json"])
    evaluates = row["role"] == "evaluate"
    update = None
    if row["digest"]:
        update = UpdateFacts(
            digest=row["digest"],
            size_bytes=row["size_bytes"],
            dense_bytes=row["dense_bytes"],
            examples=row["examples"],
            norm=row["norm"],
            source_digest=row["source_digest"],
            metrics=metrics,
        )
    return AssignmentState(
        assignment_id=row["assignment_id"],
        run_id=row["run_id"],
        round=row["round"],
        peer_id=row["peer_id"],
        role=row["role"],
        attempt=row["attempt"],
        base_version=row["base_version"],
        status=AssignmentStatus(row["state"]),
        reason=row["reason"],
        offered_at=row["offered_at"],
        preparing_at=row["preparing_at"],
        prepared_at=row["prepared_at"],
        update=update,
        metrics=metrics if evaluates else {},
        examples=row["examples"] if evaluates else 0,
        retry=row["retry"],
    )
