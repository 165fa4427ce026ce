"""Which blobs the rows still need. Rows are kept for the record; the files that they name are not, for
ever."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Select,
    and_,
    bindparam,
    or_,
    select,
    true,
    tuple_,
    union,
    update,
)

from coordinator.engine.state import AssignmentStatus, EvaluationStatus, RoundStatus, RunStatus
from coordinator.store import tables
from coordinator.store.load import not_ended
from exchange.names import DELTA
from muster.work import UNREADABLE, Work

RUNS, ROUNDS, ASSIGNMENTS, MODELS = tables.RUNS, tables.ROUNDS, tables.ASSIGNMENTS, tables.MODELS
STATES, EVALUATIONS = tables.OPTIMIZER_STATES, tables.EVALUATIONS

DELTAS_KEEP = 8  # a peer that took no part for so many versions fetches one whole
_HOLDERS = (ASSIGNMENTS, MODELS, STATES)


def live(connection: Connection) -> frozenset[str]:
    """Digests of every blob that some row still names, but for those that were given up with `forget`."""
    return frozenset(connection.execute(_held()).scalars())


def unneeded(
    connection: Connection,
    *,
    updates_keep_rounds: int,
    models_keep: int | None,
    ended_runs_keep: int | None = None,
) -> frozenset[str]:
    """Digests of the blobs that nothing will ask for again and that have not been given up yet.

    Kept are: updates of rounds that have not ended and of each run's last `updates_keep_rounds` rounds, with what
    a replay of those starts from; each run's newest `models_keep` versions (None: all), and those from which
    live work starts or that are being evaluated; of a run that has not ended, the server's state at its newest
    version and the newest deltas. Of ended runs but for the newest `ended_runs_keep` (None: all) only the last version
    is kept.
    """
    held = set(connection.execute(_held()).scalars())
    whole = _kept_whole(ended_runs_keep)
    needed = union(
        _needed_updates(updates_keep_rounds).where(whole),
        *_needed_bases(connection),
        *_needed_models(models_keep, updates_keep_rounds, whole),
        _needed_states(updates_keep_rounds).where(whole),
    )
    return frozenset(held - set(connection.execute(needed).scalars()))


def forget(connection: Connection, digests: Iterable[str]) -> None:
    """Records that these blobs are given up: a later sweep removes what is left of them."""
    rows = [{"gone": digest} for digest in digests]
    if not rows:
        return
    for table in _HOLDERS:
        # The condition again in full, so that the index on what is held serves.
        statement = update(table).where(table.c.digest == bindparam("gone"), tables.HOLDS_BLOB)
        connection.execute(statement.values(blob_gone=True), rows)


def _held() -> CompoundSelect[str]:
    return union(*(select(table.c.digest).where(tables.HOLDS_BLOB) for table in _HOLDERS))


def _kept_whole(ended_runs_keep: int | None) -> ColumnElement[bool]:
    """Whether a run keeps more than its last version."""
    if ended_runs_keep is None:
        return true()
    ended = [status.value for status in RunStatus if status.ended]
    order = (RUNS.c.ended_at.desc(), RUNS.c.run_id)
    newest = (
        select(RUNS.c.run_id).where(RUNS.c.state.in_(ended)).order_by(*order).limit(ended_runs_keep)
    ).subquery()
    return or_(not_ended(RUNS, RunStatus), RUNS.c.run_id.in_(select(newest.c.run_id)))


def _needed_updates(keep_rounds: int) -> Select[str]:
    return (
        select(ASSIGNMENTS.c.digest)
        .join(RUNS, RUNS.c.run_id == ASSIGNMENTS.c.run_id)
        .join(
            ROUNDS,
            and_(ROUNDS.c.run_id == ASSIGNMENTS.c.run_id, ROUNDS.c.number == ASSIGNMENTS.c.round),
        )
        .where(
            tables.HOLDS_BLOB.self_group(),
            or_(
                not_ended(ROUNDS, RoundStatus),
                ROUNDS.c.number > RUNS.c.last_round - keep_rounds,
                ASSIGNMENTS.c.folded_in > RUNS.c.last_round - keep_rounds,
                and_(ASSIGNMENTS.c.carried, not_ended(RUNS, RunStatus)),
            ),
        )
    )


def _needed_models(keep: int | None, keep_rounds: int, whole: ColumnElement[bool]) -> list[Select[str]]:
    digests = select(MODELS.c.digest)
    newest: ColumnElement[bool] = true()
    if keep is not None:
        newest = MODELS.c.version > RUNS.c.model_version - max(1, keep, keep_rounds + 1)
    newest = or_(and_(newest, whole), MODELS.c.version == RUNS.c.model_version)
    live_round = and_(ROUNDS.c.run_id == MODELS.c.run_id, ROUNDS.c.base_version == MODELS.c.version)
    evaluated = and_(EVALUATIONS.c.run_id == MODELS.c.run_id, EVALUATIONS.c.version == MODELS.c.version)
    return [
        digests.join(RUNS, RUNS.c.run_id == MODELS.c.run_id).where(tables.HOLDS_BLOB.self_group(), newest),
        digests.join(ROUNDS, live_round).where(not_ended(ROUNDS, RoundStatus)),
        digests.join(EVALUATIONS, evaluated).where(EVALUATIONS.c.state == EvaluationStatus.RUNNING.value),
    ]


def _needed_bases(connection: Connection) -> list[Select[str]]:
    """What work under way starts from, and updates that wait for a round."""
    columns = (ASSIGNMENTS.c.run_id, ASSIGNMENTS.c.work_json)
    live = select(*columns).where(not_ended(ASSIGNMENTS, AssignmentStatus))
    going_on = select(RUNS.c.run_id).where(not_ended(RUNS, RunStatus))
    waiting = select(*columns).where(ASSIGNMENTS.c.run_id.in_(going_on), tables.CARRIED)
    rounds = and_(not_ended(tables.ROUNDS, RoundStatus), tables.ROUNDS.c.run_id.in_(going_on))
    of_live_rounds = (
        select(*columns)
        .join(
            tables.ROUNDS,
            and_(
                tables.ROUNDS.c.run_id == ASSIGNMENTS.c.run_id, tables.ROUNDS.c.number == ASSIGNMENTS.c.round
            ),
        )
        .where(rounds)
    )
    # A round that has not offered anything yet has its own base.
    live_bases = select(tables.ROUNDS.c.run_id, tables.ROUNDS.c.base_version).where(rounds)
    bases = {(run_id, version) for run_id, version in connection.execute(live_bases)}
    for run_id, text in connection.execute(union(live, waiting, of_live_rounds)):
        with suppress(*UNREADABLE):  # of a run that cannot be read, and goes nowhere
            bases.add((run_id, Work.from_json(text).base))
    # The version itself, and what an update made against it is decoded with.
    return [
        select(table.c.digest).where(tuple_(table.c.run_id, table.c.version).in_(sorted(bases)))
        for table in (MODELS, STATES)
        if bases
    ]


def _needed_states(keep_rounds: int) -> Select[str]:
    newest = and_(RUNS.c.model_version == STATES.c.version, not_ended(RUNS, RunStatus))
    replayed = and_(
        STATES.c.version >= RUNS.c.model_version - keep_rounds, STATES.c.version < RUNS.c.model_version
    )
    followed = and_(
        STATES.c.name == DELTA,
        STATES.c.version > RUNS.c.model_version - DELTAS_KEEP,
        not_ended(RUNS, RunStatus),
    )
    return (
        select(STATES.c.digest)
        .join(RUNS, RUNS.c.run_id == STATES.c.run_id)
        .where(tables.HOLDS_BLOB.self_group(), or_(newest, followed, replayed))
    )
