"""Which blobs rows in memory still need, as `coordinator.store.blobs` finds it out in SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from sqlalchemy import Table

from coordinator.engine.state import AssignmentStatus, EvaluationStatus
from coordinator.store import tables
from coordinator.store.blobs import DELTAS_KEEP
from coordinator.store.memory_queries import ENDED_RUNS, LIVE_ROUNDS
from coordinator.store.memory_tables import MemoryTables, Row, holds_blob
from exchange.names import DELTA
from muster.work import UNREADABLE, Work

RUNS, ROUNDS, ASSIGNMENTS, MODELS = tables.RUNS, tables.ROUNDS, tables.ASSIGNMENTS, tables.MODELS
_HOLDERS = (ASSIGNMENTS, MODELS, tables.OPTIMIZER_STATES)
_LIVE_ASSIGNMENTS = tuple(status.value for status in AssignmentStatus if not status.ended)


def live(held: MemoryTables) -> frozenset[str]:
    return frozenset(digest for table in _HOLDERS for (digest,) in held[table].distinct("digest"))


def forget(held: MemoryTables, digests: Iterable[str]) -> None:
    for digest in digests:
        for table in _HOLDERS:
            for row in list(held[table].where(digest=digest)):
                held[table].update(held[table].key(row), {"blob_gone": True})


def unneeded(
    held: MemoryTables, *, updates_keep_rounds: int, models_keep: int | None, ended_runs_keep: int | None
) -> frozenset[str]:
    whole = _kept_whole(held, ended_runs_keep)
    needed = {*_needed_updates(held, updates_keep_rounds, whole)}
    needed |= {*_needed_models(held, models_keep, updates_keep_rounds, whole)}
    needed |= {*_needed_states(held, updates_keep_rounds, whole)}
    return live(held) - needed


def _holding(held: MemoryTables, table: Table) -> Iterator[tuple[Row, Row]]:
    """The rows that hold a blob, each with its run's."""
    for (digest,) in list(held[table].distinct("digest")):
        for row in held[table].where(digest=digest):
            yield row, held[RUNS].rows[row["run_id"],]


def _kept_whole(held: MemoryTables, keep: int | None) -> Mapping[str, bool]:
    """Whether each run keeps more than its last version."""
    runs = held[RUNS].rows.values()
    ended = [row for row in runs if row["state"] in ENDED_RUNS]
    ended.sort(key=lambda row: (-(row["ended_at"] or 0.0), row["run_id"]))
    old = set() if keep is None else {row["run_id"] for row in ended[keep:]}
    return {row["run_id"]: row["run_id"] not in old for row in runs}


def _needed_updates(held: MemoryTables, keep_rounds: int, whole: Mapping[str, bool]) -> Iterator[str]:
    rounds = held[ROUNDS].rows
    for row, run in _holding(held, ASSIGNMENTS):
        round_ = rounds.get((row["run_id"], row["round"]))
        if round_ is None or not whole[row["run_id"]]:
            continue
        recent = max(row["round"], row["folded_in"]) > run["last_round"] - keep_rounds
        waits = row["carried"] and run["state"] not in ENDED_RUNS
        if round_["state"] in LIVE_ROUNDS or recent or waits:
            yield row["digest"]


def _needed_models(
    held: MemoryTables, keep: int | None, keep_rounds: int, whole: Mapping[str, bool]
) -> Iterator[str]:
    for row, run in _holding(held, MODELS):
        newest, version = run["model_version"], row["version"]
        recent = newest is not None and version > newest - max(1, keep or 0, keep_rounds + 1)
        if version == newest or ((keep is None or recent) and whole[row["run_id"]]):
            yield row["digest"]
    for row in _in_use(held):
        if holds_blob(row):
            yield row["digest"]


def _in_use(held: MemoryTables) -> Iterator[Row]:
    """The versions from which live work starts, with what an update against them is decoded with, and those under
    evaluation."""
    models = held[MODELS].rows
    live_rounds = (row for state in LIVE_ROUNDS for row in held[ROUNDS].where(state=state))
    running = held[tables.EVALUATIONS].where(state=EvaluationStatus.RUNNING.value)
    bases = _bases(held)
    keys = bases | {(row["run_id"], row["base_version"]) for row in live_rounds}
    keys |= {(row["run_id"], row["version"]) for row in running}
    yield from (models[key] for key in keys if key in models)
    for run_id, version in bases:
        yield from held[tables.OPTIMIZER_STATES].where(run_id=run_id, version=version)


def _bases(held: MemoryTables) -> set[tuple[str, int]]:
    """Run and version of what work under way starts from, and updates that wait for a round."""
    work = [row for state in _LIVE_ASSIGNMENTS for row in held[ASSIGNMENTS].where(state=state)]
    for run in held[RUNS].rows.values():
        if run["state"] not in ENDED_RUNS:
            work += [row for row in held[ASSIGNMENTS].where(run_id=run["run_id"]) if row["carried"]]
    bases: set[tuple[str, int]] = set()
    for round_ in held[tables.ROUNDS].rows.values():
        of = held[RUNS].rows.get((round_["run_id"],))
        if round_["state"] in LIVE_ROUNDS and of is not None and of["state"] not in ENDED_RUNS:
            bases.add((round_["run_id"], round_["base_version"]))
            work += held[ASSIGNMENTS].where(run_id=round_["run_id"], round=round_["number"])
    for row in work:
        with suppress(*UNREADABLE):  # of a run that cannot be read, and goes nowhere
            bases.add((row["run_id"], Work.from_json(row["work_json"]).base))
    return bases


def _needed_states(held: MemoryTables, keep_rounds: int, whole: Mapping[str, bool]) -> Iterator[str]:
    for row, run in _holding(held, tables.OPTIMIZER_STATES):
        newest, version = run["model_version"], row["version"]
        if newest is None or not whole[row["run_id"]]:
            continue
        going_on = run["state"] not in ENDED_RUNS
        followed = row["name"] == DELTA and version > newest - DELTAS_KEEP
        if (going_on and (version == newest or followed)) or newest - keep_rounds <= version < newest:
            yield row["digest"]
