"""The questions of `coordinator.store.queries` and `load`, asked of tables in memory."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from coordinator.engine.history import WORKS_MAX
from coordinator.engine.standings import LATE
from coordinator.engine.state import (
    AssignmentStatus,
    EvaluationStatus,
    RoundStatus,
    RunState,
    RunStatus,
)
from coordinator.store import tables
from coordinator.store.load import UNREADABLE, run_state, why_unread
from coordinator.store.memory_tables import Key, MemoryTables, Row
from coordinator.store.queries import as_row, read_json
from coordinator.store.rows import AssignmentRow, ModelRow, PeerRow, RoundRow, RoundTotals, RunRow
from muster.task import metrics

RUNS, ROUNDS, ASSIGNMENTS, MODELS = tables.RUNS, tables.ROUNDS, tables.ASSIGNMENTS, tables.MODELS
EVALUATIONS, PEERS, STATES = tables.EVALUATIONS, tables.PEERS, tables.OPTIMIZER_STATES

LIVE_ROUNDS = {status.value for status in RoundStatus if not status.ended}
ENDED_RUNS = {status.value for status in RunStatus if status.ended}
Totals = Counter[
    Key
]  # bytes by ("run", run_id, direction), ("round", run_id, number, direction), ("peer", ...)


def run_row(held: MemoryTables, sent: Totals, row: Row) -> RunRow:
    run_id = row["run_id"]
    return as_row(
        RunRow,
        row,
        model_digest=_digest(held, run_id, row["model_version"]),
        bytes_up=sent["run", run_id, "up"],
        bytes_down=sent["run", run_id, "down"],
        bytes_up_dense=held[ASSIGNMENTS].dense_bytes[run_id],
        metrics=_newest_metrics(held[EVALUATIONS].where(run_id=run_id)),
    )


def newest_first(row: Row) -> tuple[float, str]:
    """The order of runs."""
    return -row["created_at"], row["run_id"]


def round_row(held: MemoryTables, sent: Totals, row: Row) -> RoundRow:
    run_id, number = row["run_id"], row["number"]
    of_round = (each for each in held[EVALUATIONS].where(run_id=run_id) if each["round"] == number)
    return as_row(
        RoundRow,
        row,
        model_digest=_digest(held, run_id, row["model_version"]),
        bytes_up=sent["round", run_id, number, "up"],
        bytes_down=sent["round", run_id, number, "down"],
        metrics=_newest_metrics(of_round),
        cohort=tuple(read_json(row["cohort_json"], [])),
        assignments=(),
    )


def round_totals(held: MemoryTables, run_id: str, number: int) -> RoundTotals:
    rows = list(held[ASSIGNMENTS].where(run_id=run_id, round=number))
    delivered = [row for row in rows if row["digest"] and row["state"] == "DELIVERED"]
    return RoundTotals(bytes_up_dense=sum(row["dense_bytes"] for row in rows), delivered=len(delivered))


def assignment_rows(rows: Iterable[Row]) -> list[AssignmentRow]:
    """Those of the round before those of its version's evaluation; by peer, then attempt."""
    order = sorted(rows, key=lambda row: (row["evaluation"], row["peer_id"], row["attempt"]))
    return [as_row(AssignmentRow, row) for row in order]


def is_behind(row: AssignmentRow, evaluation: int, peer_id: str, attempt: int) -> bool:
    """In the order of `assignment_rows`."""
    return (int(row.evaluation), row.peer_id, row.attempt) > (evaluation, peer_id, attempt)


def peer_row(held: MemoryTables, sent: Totals, row: Row) -> PeerRow:
    peer_id = row["peer_id"]
    work = list(held[ASSIGNMENTS].where(peer_id=peer_id))

    def updates(state: str, fits: Callable[[str], bool] = lambda _error_id: True) -> int:
        return sum(
            not each["evaluation"] and each["state"] == state and fits(each["error_id"]) for each in work
        )

    told = (each for each in work if each["source_digest"])
    newest = min(told, key=lambda each: (-each["offered_at"], each["assignment_id"]), default=None)
    return as_row(
        PeerRow,
        row,
        source_digest="" if newest is None else newest["source_digest"],
        updates_delivered=updates("DELIVERED"),
        updates_rejected=updates("REJECTED"),
        updates_failed=updates("LOST", lambda error_id: error_id != ""),
        updates_missed=updates("LOST", lambda error_id: error_id == "")
        + updates("EXPIRED", lambda error_id: error_id == LATE),
        bytes_up=sent["peer", peer_id, "up"],
        bytes_down=sent["peer", peer_id, "down"],
    )


def model_row(held: MemoryTables, row: Row) -> ModelRow:
    evaluation = held[EVALUATIONS].rows.get((row["run_id"], row["version"]))
    return as_row(ModelRow, row, metrics=_newest_metrics([] if evaluation is None else [evaluation]))


def live_runs(held: MemoryTables, unread: dict[str, str] | None) -> list[RunState]:
    rows = [row for row in held[RUNS].rows.values() if row["state"] not in ENDED_RUNS]
    loaded: list[RunState] = []
    for row in sorted(rows, key=lambda row: (row["created_at"], row["run_id"])):
        try:
            loaded.append(live_run(held, row))
        except UNREADABLE as error:
            if unread is None:
                raise
            unread[row["run_id"]] = why_unread(error)
    return loaded


def live_run(held: MemoryTables, row: Row) -> RunState:
    run_id = row["run_id"]
    rounds = [each for each in held[ROUNDS].where(run_id=run_id) if each["state"] in LIVE_ROUNDS]
    running = EvaluationStatus.RUNNING.value
    evaluations = [each for each in held[EVALUATIONS].where(run_id=run_id) if each["state"] == running]
    work = [
        each
        for round_ in rounds
        for each in held[ASSIGNMENTS].where(run_id=run_id, round=round_["number"])
        if not each["evaluation"]
    ]
    work += [
        each
        for evaluation in evaluations
        for each in held[ASSIGNMENTS].where(run_id=run_id, round=evaluation["round"])
        if each["evaluation"]
    ]
    work += [each for each in held[ASSIGNMENTS].where(run_id=run_id) if each["carried"]]
    return run_state(
        row,
        sorted(rounds, key=lambda each: each["number"]),
        sorted(evaluations, key=lambda each: each["version"]),
        sorted(work, key=lambda each: each["assignment_id"]),
        _RowsOfRun(held, run_id),
    )


class _RowsOfRun:
    """See `coordinator.store.load.RowsOfRun`."""

    def __init__(self, held: MemoryTables, run_id: str) -> None:
        self._held = held
        self._run_id = run_id

    def models(self, versions: Iterable[int]) -> list[Row]:
        rows = self._held[MODELS].rows
        keys = ((self._run_id, version) for version in sorted(versions))
        return [rows[key] for key in keys if key in rows]

    def folded(self) -> Iterable[tuple[str, str, int]]:
        rows = self._held[ASSIGNMENTS].where(run_id=self._run_id)
        return ((row["peer_id"], row["work_json"], row["round"]) for row in rows if row["folded_in"])

    def _worked(self) -> list[Row]:
        rows = self._held[ASSIGNMENTS].where(run_id=self._run_id)
        return sorted(
            (row for row in rows if not row["evaluation"]), key=lambda row: (row["round"], row["attempt"])
        )

    def asked(self) -> Iterable[tuple[str, int, int, int, int]]:
        by_peer: dict[str, list[Row]] = defaultdict(list)
        for row in self._worked():
            by_peer[row["peer_id"]].append(row)
        for peer_id, rows in by_peer.items():
            ended = [row["state"] for row in rows if AssignmentStatus(row["state"]).ended]
            delivered = ended.count(AssignmentStatus.DELIVERED.value)
            yield peer_id, len(rows), delivered, len(ended), rows[-1]["round"]

    def newest_ended(self) -> Iterable[Row]:
        by_peer: dict[str, deque[Row]] = defaultdict(lambda: deque(maxlen=WORKS_MAX))
        for row in self._worked():
            if AssignmentStatus(row["state"]).ended:
                by_peer[row["peer_id"]].append(row)
        return (row for rows in by_peer.values() for row in rows)

    def standings(self) -> list[Row]:
        return sorted(self._held[tables.STANDINGS].where(run_id=self._run_id), key=lambda row: row["peer_id"])

    def warnings(self) -> list[Row]:
        return sorted(self._held[tables.WARNINGS].where(run_id=self._run_id), key=lambda row: row["cause"])


def _digest(held: MemoryTables, run_id: str, version: int | None) -> str:
    row = held[MODELS].rows.get((run_id, version))
    return "" if row is None else row["digest"]


def _newest_metrics(rows: Iterable[Row]) -> Mapping[str, Any]:
    """Of the newest evaluation that has any."""
    told = (row for row in rows if row["metrics_json"] != "{}")
    newest = max(told, key=lambda row: row["version"], default=None)
    return {} if newest is None else metrics.from_json(newest["metrics_json"])
