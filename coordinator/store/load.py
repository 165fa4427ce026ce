"""Rebuilds what the engine holds in memory from the rows that its transitions wrote."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from sqlalchemy import ColumnElement, Connection, Table, and_, func, not_, select

from coordinator.engine.history import WORKS_MAX, PeerHistory, WorkDone, work_done
from coordinator.engine.sorted_map import SortedMap
from coordinator.engine.state import (
    AssignmentState,
    AssignmentStatus,
    EvaluationState,
    EvaluationStatus,
    Fold,
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
from coordinator.engine.works import Works
from coordinator.store import tables
from coordinator.store.rows import Row
from exchange.facts import UpdateFacts
from muster.spec.model import RunSpec
from muster.task.metrics import from_json
from muster.texts import one_line
from muster.work import Work, evaluates

_DELIVERED = AssignmentStatus.DELIVERED.value
_ENDED = [status.value for status in AssignmentStatus if status.ended]
UNREADABLE = (ValueError, TypeError, LookupError)  # whatever a damaged row or another version's raises


Groups = Mapping[str, Sequence[Row]]


class RowsOfRun(Protocol):
    """What a run has beside its row and what is live of it."""

    def models(self, versions: Iterable[int]) -> Iterable[Row]:
        """In order."""
        ...

    def folded(self) -> Iterable[tuple[str, str, int]]:
        """Peer, work and newest round of the updates that a version has in it."""
        ...

    def asked(self) -> Iterable[tuple[str, int, int, int, int]]:
        """Of each peer: works offered, delivered and ended, and the newest round; evaluations of versions apart."""
        ...

    def newest_ended(self) -> Iterable[Row]:
        """Of each peer: the newest `WORKS_MAX` works that have ended, by round and attempt."""
        ...

    def standings(self) -> Iterable[Row]:
        """By peer."""
        ...

    def warnings(self) -> Iterable[Row]: ...


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
        run_id = row["run_id"]
        try:
            loaded.append(
                run_state(
                    row,
                    live_rounds.get(run_id, ()),
                    live_evaluations.get(run_id, ()),
                    assignments.get(run_id, ()),
                    _SqlRows(connection, run_id),
                )
            )
        except UNREADABLE as error:
            if unread is None:
                raise
            unread[run_id] = why_unread(error)
    return loaded


def why_unread(error: Exception) -> str:
    return one_line(f"what is stored of it cannot be read here: {error!r}")


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
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in found.mappings():
        groups[row["run_id"]].append(row)
    return groups


def _live_assignments(connection: Connection) -> Groups:
    """Of live rounds and of live evaluations, those that have ended among them; and what has outlived its round."""
    assignments, rounds, evaluations = tables.ASSIGNMENTS, tables.ROUNDS, tables.EVALUATIONS
    of_round = (
        rounds,
        and_(rounds.c.run_id == assignments.c.run_id, rounds.c.number == assignments.c.round),
        (not_ended(rounds, RoundStatus), not_(assignments.c.evaluation)),
    )
    of_evaluation = (
        evaluations,
        and_(
            evaluations.c.run_id == assignments.c.run_id,
            evaluations.c.round == assignments.c.round,
        ),
        (evaluations.c.state == EvaluationStatus.RUNNING.value, assignments.c.evaluation),
    )
    outlived = (
        tables.RUNS,
        tables.RUNS.c.run_id == assignments.c.run_id,
        (not_ended(tables.RUNS, RunStatus), tables.CARRIED),
    )
    groups: dict[str, list[Row]] = defaultdict(list)
    for table, joined, where in (of_round, of_evaluation, outlived):
        found = select(assignments).join(table, joined).where(*where)
        for row in connection.execute(found).mappings():
            groups[row["run_id"]].append(row)
    return groups


class _SqlRows:
    def __init__(self, connection: Connection, run_id: str) -> None:
        self._connection = connection
        self._run_id = run_id

    def models(self, versions: Iterable[int]) -> Iterable[Row]:
        models = tables.MODELS
        return self._rows(models, models.c.version.in_(sorted(versions)))

    def standings(self) -> Iterable[Row]:
        return self._rows(tables.STANDINGS)

    def warnings(self) -> Iterable[Row]:
        return self._rows(tables.WARNINGS)

    def _rows(self, table: Table, *where: ColumnElement[bool]) -> Iterable[Row]:
        order = table.primary_key.columns
        found = select(table).where(table.c.run_id == self._run_id, *where).order_by(*order)
        return self._connection.execute(found).mappings()

    def folded(self) -> Iterable[tuple[str, str, int]]:
        assignments = tables.ASSIGNMENTS
        found = self._connection.execute(
            select(assignments.c.peer_id, assignments.c.work_json, func.max(assignments.c.round))
            .where(assignments.c.run_id == self._run_id, assignments.c.folded_in > 0)
            .group_by(assignments.c.peer_id, assignments.c.work_json)
        )
        return ((peer_id, work, last) for peer_id, work, last in found)

    def asked(self) -> Iterable[tuple[str, int, int, int, int]]:
        work = tables.ASSIGNMENTS.c

        def of(states: list[str]) -> ColumnElement[int]:
            return func.count().filter(work.state.in_(states))

        found = self._connection.execute(
            select(work.peer_id, func.count(), of([_DELIVERED]), of(_ENDED), func.max(work.round))
            .where(work.run_id == self._run_id, not_(work.evaluation))
            .group_by(work.peer_id)
        )
        return ((row[0], row[1], row[2], row[3], row[4]) for row in found)

    def newest_ended(self) -> Iterable[Row]:
        work = tables.ASSIGNMENTS.c
        order = (work.round.desc(), work.attempt.desc())
        place = func.row_number().over(partition_by=work.peer_id, order_by=order).label("place")
        ended = (
            select(tables.ASSIGNMENTS, place)
            .where(work.run_id == self._run_id, not_(work.evaluation), work.state.in_(_ENDED))
            .subquery()
        )
        newest = select(ended).where(ended.c.place <= WORKS_MAX)
        return self._connection.execute(newest.order_by(ended.c.round, ended.c.attempt)).mappings()


def run_state(
    row: Row,
    round_rows: Iterable[Row],
    evaluation_rows: Iterable[Row],
    assignment_rows: Iterable[Row],
    beside: RowsOfRun,
) -> RunState:
    """The run as it stood after the last commit, from its row, those of its live rounds and evaluations, and those of
    their assignments. Raises one of `UNREADABLE`."""
    by_round: dict[int, dict[str, AssignmentState]] = defaultdict(dict)
    by_version: dict[int, dict[str, AssignmentState]] = defaultdict(dict)
    carried: list[AssignmentState] = []
    for each in assignment_rows:
        assignment = _assignment(each)
        if each["carried"]:
            carried.append(assignment)
        elif assignment.evaluation:
            by_version[assignment.work.base][assignment.assignment_id] = assignment
        else:
            by_round[assignment.round][assignment.assignment_id] = assignment
    rounds = {r["number"]: _round(r, by_round[r["number"]]) for r in round_rows}
    evaluations = {e["version"]: _evaluation(e, by_version[e["version"]]) for e in evaluation_rows}
    newest = _models(beside, {row["model_version"]} - {None})
    model = newest.get(row["model_version"])
    outlived = Works((), carried)
    return RunState(
        run_id=row["run_id"],
        spec=RunSpec.from_json(row["spec_json"]),
        status=RunStatus(row["state"]),
        reason=row["reason"],
        created_at=row["created_at"],
        source_digest=row["source_digest"],
        model=model,
        rounds=rounds,
        evaluations=evaluations,
        carried=outlived,
        models=_models(beside, versions_in_use(model, rounds, evaluations, outlived)),
        counted=_counted(beside.folded()),
        history=_history(beside),
        standings=_standings(beside.standings()),
        rest=_rest(row),
        last_round=row["last_round"],
        committed=row["committed"],
        skipped=row["skipped"],
        skipped_in_row=row["skipped_in_row"],
        warnings=_warnings(beside.warnings()),
    )


def _counted(folded: Iterable[tuple[str, str, int]]) -> dict[tuple[str, str], int]:
    roles: dict[str, str] = {}  # the works of a round are alike
    counted: dict[tuple[str, str], int] = {}
    for peer_id, work, last in folded:
        role = roles.setdefault(work, "") or Work.from_json(work).role
        roles[work] = role
        counted[peer_id, role] = max(last, counted.get((peer_id, role), 0))
    return counted


def _history(beside: RowsOfRun) -> SortedMap[str, PeerHistory]:
    works: dict[str, list[WorkDone]] = defaultdict(list)
    for row in beside.newest_ended():
        works[row["peer_id"]].append(work_done(_assignment(row), row["ended_at"] or 0.0))
    return SortedMap(
        (
            peer_id,
            PeerHistory(
                asked=asked,
                delivered=delivered,
                failed=ended - delivered,
                last_round=last,
                works=tuple(works[peer_id]),
            ),
        )
        for peer_id, asked, delivered, ended, last in beside.asked()
    )


def _warnings(rows: Iterable[Row]) -> dict[str, WarningState]:
    return {
        row["cause"]: WarningState(
            cause=row["cause"],
            reason=row["reason"],
            peer_id=row["peer_id"],
            times=row["times"],
            first_round=row["first_round"],
            last_round=row["last_round"],
            last_at=row["last_at"],
        )
        for row in rows
    }


def _models(beside: RowsOfRun, versions: Iterable[int]) -> dict[int, ModelVersion]:
    return {
        row["version"]: ModelVersion(
            version=row["version"],
            round=row["round"],
            digest=row["digest"],
            size_bytes=row["size_bytes"],
            layout_digest=row["layout_digest"],
        )
        for row in beside.models(versions)
    }


def _standings(rows: Iterable[Row]) -> dict[str, PeerStanding]:
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
        for row in rows
    }


def _rest(row: Row) -> Rest | None:
    return None if row["rest_until"] is None else Rest(until=row["rest_until"], present=row["rest_present"])


def _round(row: Row, assignments: Mapping[str, AssignmentState]) -> RoundState:
    cohort = tuple(json.loads(row["cohort_json"]))
    return RoundState(
        number=row["number"],
        status=RoundStatus(row["state"]),
        reason=row["reason"],
        base_version=row["base_version"],
        cohort=cohort,
        roles=json.loads(row["roles_json"]),
        needed=row["needed"],
        quorum=row["quorum"],
        planned_at=row["planned_at"],
        opened_at=row["opened_at"],
        deadline_at=row["deadline_at"],
        grace_until=row["grace_until"],
        fold=Fold.from_json(row["fold_json"]),
        assignments=Works(cohort, assignments.values()),
    )


def _evaluation(row: Row, assignments: Mapping[str, AssignmentState]) -> EvaluationState:
    return EvaluationState(
        version=row["version"],
        round=row["round"],
        deadline_at=row["deadline_at"],
        assignments=Works((), assignments.values()),
        own_pending=row["own_pending"],
        own_metrics=from_json(row["own_metrics_json"]),
    )


def _assignment(row: Row) -> AssignmentState:
    metrics = from_json(row["metrics_json"])
    work = Work.from_json(row["work_json"])
    answers = evaluates(work.role)
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
        work=work,
        evaluation=row["evaluation"],
        attempt=row["attempt"],
        status=AssignmentStatus(row["state"]),
        reason=row["reason"],
        offered_at=row["offered_at"],
        preparing_at=row["preparing_at"],
        prepared_at=row["prepared_at"],
        training_at=row["training_at"],
        uploading_at=row["uploading_at"],
        deadline_at=row["deadline_at"],
        update=update,
        metrics=metrics if answers else {},
        examples=row["examples"] if answers else 0,
        retry=row["retry"],
    )
