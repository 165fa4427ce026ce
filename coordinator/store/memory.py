"""The store in this process's memory, for simulations: no thread, no file, nothing that outlives the process.

It keeps the contract of `coordinator.store.protocol` to the letter, conflicts and order included, so what a simulated
coordinator decides is what one on a database decides. A commit runs at once and then lets the others run, as one that
waits for a disk does. A coordinator that is started again with the same store goes on where the last one stood.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Table

from coordinator.engine.state import (
    AssignmentStatus,
    EvaluationStatus,
    RoundStatus,
    RunState,
    Transition,
)
from coordinator.store import memory_blobs, memory_queries, tables
from coordinator.store.aside import ended_transition
from coordinator.store.faults import fenced
from coordinator.store.memory_events import MemoryEvents, MemoryTransfers
from coordinator.store.memory_tables import MemoryTables, Row
from coordinator.store.protocol import EVENTS_PAGE, Store
from coordinator.store.queries import as_row
from coordinator.store.removal import check_removable, removed_transition
from coordinator.store.rows import (
    AssignmentRow,
    EventRow,
    Fence,
    ModelRow,
    PeerRecord,
    PeerRow,
    RoundRow,
    RoundTotals,
    RunRow,
    Transfer,
    WarningRow,
)
from coordinator.store.write import ENTITIES, clean, refused, shape_of
from exchange.names import DELTA
from muster.runtime.failpoints import failpoint

RUNS, ROUNDS, ASSIGNMENTS, MODELS = tables.RUNS, tables.ROUNDS, tables.ASSIGNMENTS, tables.MODELS
STATES = tables.OPTIMIZER_STATES

Result = TypeVar("Result")


class MemoryStore(Store):
    """A `Store` in memory, for simulations: no files, no threads."""

    def __init__(self) -> None:
        self._held = MemoryTables()
        self._events = MemoryEvents()
        self._transfers = MemoryTransfers()
        self._news = asyncio.Event()
        self._fence = Fence(epoch=0)
        self._holder = ""

    # -- life ------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """What is held stays, for a coordinator that is started again."""

    @property
    def folder(self) -> Path | None:
        return None

    @property
    def where(self) -> str:
        return "the memory of this process"

    # -- writing ---------------------------------------------------------------------------------------------

    async def take_fence(self, holder: str, at: float) -> Fence:
        self._fence, self._holder = Fence(epoch=self._fence.epoch + 1), holder
        return self._fence

    def _check(self, fence: Fence | None) -> None:
        if fence is not None and fence != self._fence:
            raise fenced(self.where, self._holder)

    async def commit(
        self,
        transitions: Sequence[Transition],
        transfers: Sequence[Transfer] = (),
        *,
        fence: Fence | None = None,
    ) -> list[int]:
        self._check(fence)
        kinds = [transition.kind for transition in transitions if transition.kind]

        def work() -> None:
            for transition in transitions:
                self._apply(transition)
            self._held.check()
            for kind in kinds:
                failpoint(f"{kind}.before")

        sequences = self._write(work, transitions)
        self._transfers.add(transfers)
        for kind in kinds:
            failpoint(f"{kind}.after")
        await asyncio.sleep(0)
        return sequences

    def _write(self, work: Callable[[], None], transitions: Sequence[Transition]) -> list[int]:
        """Does all of `work` and adds the events that the transitions tell, or nothing."""
        self._held.begin()
        try:
            work()
            events = self._events.rows(transitions)
        except BaseException:
            self._held.undo()
            raise
        first = self._events.newest + 1
        self._events.add(events)
        if events:
            self._news.set()
            self._news = asyncio.Event()
        numbers = iter(range(first, first + len(events)))
        return [next(numbers) if transition.kind else 0 for transition in transitions]

    def _apply(self, transition: Transition) -> None:
        table = self._held[ENTITIES[transition.entity]]
        verb = shape_of(transition).verb
        key_values, values = clean(dict(transition.key)), clean(dict(transition.values))
        key = table.key(key_values)
        row = table.rows.get(key)
        if verb in ("update", "delete") and (row is None or row["state"] != transition.before):
            raise refused([transition])
        if verb == "delete":
            table.delete(key)
        elif verb == "insert" or row is None:
            table.insert({**key_values, **values})
        else:
            table.update(key, values)

    async def end_unread(self, run_id: str, reason: str, at: float, *, fence: Fence | None = None) -> None:
        self._check(fence)
        ended = ended_transition(run_id, reason, at)
        told = {"reason": reason, "ended_at": at}
        running, finished = EvaluationStatus.RUNNING.value, EvaluationStatus.FINISHED.value

        def work() -> None:
            live = {status.value for status in RoundStatus if not status.ended}
            self._change(ROUNDS, run_id, live, {"state": RoundStatus.FAILED.value, **told})
            live = {status.value for status in AssignmentStatus if not status.ended}
            self._change(ASSIGNMENTS, run_id, live, {"state": AssignmentStatus.EXPIRED.value, **told})
            self._change(
                tables.EVALUATIONS, run_id, {running, finished}, {"state": finished, "own_pending": False}
            )
            self._apply(ended)

        self._write(work, [ended])

    def _change(self, table: Table, run_id: str, states: set[str], values: Row) -> None:
        """Of the run's rows those in one of these states."""
        held = self._held[table]
        for row in [row for row in held.where(run_id=run_id) if row["state"] in states]:
            held.update(held.key(row), values)

    async def forget_blobs(self, digests: Iterable[str], *, fence: Fence | None = None) -> None:
        self._check(fence)
        self._write(lambda: memory_blobs.forget(self._held, digests), ())

    async def remove_run(
        self, run_id: str, at: float, reason: str, *, fence: Fence | None = None
    ) -> frozenset[str]:
        self._check(fence)
        row = self._held[RUNS].rows.get((run_id,))
        check_removable(run_id, None if row is None else row["state"])
        before = memory_blobs.live(self._held)

        def work() -> None:
            for table in self._held:
                if table.has("run_id"):
                    for row in list(table.where(run_id=run_id)):
                        table.delete(table.key(row))

        self._write(work, [removed_transition(run_id, at, reason)])
        self._events.remove_run(run_id)
        self._transfers.remove_run(run_id)
        return before - memory_blobs.live(self._held)

    async def prune_peer_events(self, keep: int, *, fence: Fence | None = None) -> None:
        self._check(fence)
        peers = self._held[tables.PEERS].rows
        self._events.prune_peers(keep, lambda peer_id: (peer_id,) in peers)

    # -- what happened ---------------------------------------------------------------------------------------

    async def wait_for_events(self, after: int) -> int:
        while self._events.newest <= after:
            await self._news.wait()
        return self._events.newest

    async def events(
        self, after: int = 0, run_id: str | None = None, limit: int = EVENTS_PAGE
    ) -> list[EventRow]:
        return self._events.after(after, run_id, limit)

    async def recent_events(
        self, *, run_id: str | None = None, peer_id: str | None = None, limit: int = 20
    ) -> list[EventRow]:
        return self._events.recent(run_id, peer_id, limit)

    async def delivered_sequence(self, assignment_id: str) -> int:
        return self._events.delivered(assignment_id)

    # -- taking up where things stand ------------------------------------------------------------------------

    async def load_runs(self, unread: dict[str, str] | None = None) -> list[RunState]:
        return memory_queries.live_runs(self._held, unread)

    async def load_peers(self) -> list[PeerRecord]:
        return [as_row(PeerRecord, row) for row in self._peers()]

    async def named_peers(self) -> frozenset[str]:
        named = (self._held[table].distinct("peer_id") for table in (ASSIGNMENTS, tables.STANDINGS))
        return frozenset(peer_id for keys in named for (peer_id,) in keys)

    async def live_blobs(self) -> frozenset[str]:
        return memory_blobs.live(self._held)

    async def unneeded_blobs(
        self, *, updates_keep_rounds: int, models_keep: int | None, ended_runs_keep: int | None = None
    ) -> frozenset[str]:
        return memory_blobs.unneeded(
            self._held,
            updates_keep_rounds=updates_keep_rounds,
            models_keep=models_keep,
            ended_runs_keep=ended_runs_keep,
        )

    # -- questions -------------------------------------------------------------------------------------------

    async def runs(self, *, after: tuple[float, str] | None = None, limit: int | None = None) -> list[RunRow]:
        rows = sorted(self._held[RUNS].rows.values(), key=memory_queries.newest_first)
        if after is not None:
            rows = [row for row in rows if memory_queries.newest_first(row) > (-after[0], after[1])]
        return [self._run_row(row) for row in rows[:limit]]

    async def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        peers, runs = self._held[tables.PEERS].rows.values(), self._held[RUNS].rows.values()
        return Counter(row["state"] for row in peers), Counter(row["state"] for row in runs)

    async def run(self, run_id: str) -> RunRow | None:
        return self._one(self._held[RUNS].rows.get((run_id,)), self._run_row)

    async def run_by_request(self, request_id: str) -> RunRow | None:
        return self._one(next(self._held[RUNS].where(request_id=request_id), None), self._run_row)

    async def warnings(self, run_id: str) -> list[WarningRow]:
        rows = self._held[tables.WARNINGS].where(run_id=run_id)
        return [as_row(WarningRow, row) for row in sorted(rows, key=lambda r: (r["last_at"], r["cause"]))]

    async def rounds(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[RoundRow]:
        rows = [row for row in self._held[ROUNDS].where(run_id=run_id) if row["number"] > after]
        return [self._round_row(row) for row in sorted(rows, key=lambda row: row["number"])[:limit]]

    async def bare_round(self, run_id: str, number: int) -> tuple[RoundRow, RoundTotals] | None:
        row = self._held[ROUNDS].rows.get((run_id, number))
        if row is None:
            return None
        return self._round_row(row), memory_queries.round_totals(self._held, run_id, number)

    async def assignments(
        self, run_id: str, number: int, *, after: tuple[int, str, int] | None = None, limit: int | None = None
    ) -> list[AssignmentRow]:
        rows = memory_queries.assignment_rows(self._held[ASSIGNMENTS].where(run_id=run_id, round=number))
        if after is not None:
            rows = [row for row in rows if memory_queries.is_behind(row, *after)]
        return rows[:limit]

    async def folded(self, run_id: str, number: int) -> list[AssignmentRow]:
        return memory_queries.assignment_rows(self._held[ASSIGNMENTS].where(run_id=run_id, folded_in=number))

    async def round(self, run_id: str, number: int) -> RoundRow | None:
        row = self._held[ROUNDS].rows.get((run_id, number))
        if row is None:
            return None
        return replace(self._round_row(row), assignments=tuple(await self.assignments(run_id, number)))

    async def assignment(self, assignment_id: str) -> AssignmentRow | None:
        row = self._held[ASSIGNMENTS].rows.get((assignment_id,))
        return self._one(row, lambda row: as_row(AssignmentRow, row))

    async def peers(self, *, after: str = "", limit: int | None = None) -> list[PeerRow]:
        rows = (row for row in self._peers() if row["peer_id"] > after)
        return [self._peer_row(row) for row in islice(rows, limit)]

    async def peer(self, peer_id: str) -> PeerRow | None:
        return self._one(self._held[tables.PEERS].rows.get((peer_id,)), self._peer_row)

    async def models(self, run_id: str, *, after: int = -1, limit: int | None = None) -> list[ModelRow]:
        rows = (row for row in self._models(run_id) if row["version"] > after)
        return [self._model_row(row) for row in islice(rows, limit)]

    async def model(
        self, run_id: str, *, version: int | None = None, round: int | None = None
    ) -> ModelRow | None:
        rows = [
            row
            for row in self._models(run_id)
            if version in (None, row["version"]) and round in (None, row["round"])
        ]
        return self._model_row(rows[-1]) if rows else None

    async def model_by_digest(self, run_id: str, digest: str) -> ModelRow | None:
        rows = [row for row in self._models(run_id) if row["digest"] == digest]
        return self._model_row(rows[-1]) if rows else None

    async def deltas(self, run_id: str, after: int, upto: int) -> list[str]:
        rows = self._held[STATES].where(run_id=run_id)
        kept = [row for row in rows if row["name"] == DELTA and not row["blob_gone"]]
        wanted = sorted((row["version"], row["digest"]) for row in kept if after < row["version"] <= upto)
        return [digest for _, digest in wanted]

    async def model_by_state(self, run_id: str, names: Sequence[str], digest: str) -> ModelRow | None:
        rows = self._held[STATES].where(run_id=run_id)
        found = [row["version"] for row in rows if row["name"] in names and row["digest"] == digest]
        return await self.model(run_id, version=max(found)) if found else None

    async def optimizer_states(self, run_id: str, version: int) -> Mapping[str, str]:
        rows = self._held[STATES].where(run_id=run_id, version=version)
        told = sorted((row["name"], row["digest"]) for row in rows)
        return {name: digest for name, digest in told if name != DELTA}

    # -- rows ------------------------------------------------------------------------------------------------

    def _one(self, row: Row | None, make: Callable[[Row], Result]) -> Result | None:
        return None if row is None else make(row)

    def _run_row(self, row: Row) -> RunRow:
        return memory_queries.run_row(self._held, self._transfers.sums, row)

    def _round_row(self, row: Row) -> RoundRow:
        return memory_queries.round_row(self._held, self._transfers.sums, row)

    def _peer_row(self, row: Row) -> PeerRow:
        return memory_queries.peer_row(self._held, self._transfers.sums, row)

    def _model_row(self, row: Row) -> ModelRow:
        return memory_queries.model_row(self._held, row)

    def _peers(self) -> list[Row]:
        return sorted(self._held[tables.PEERS].rows.values(), key=lambda row: row["peer_id"])

    def _models(self, run_id: str) -> list[Row]:
        """In order."""
        return sorted(self._held[MODELS].where(run_id=run_id), key=lambda row: row["version"])
