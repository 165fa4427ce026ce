"""The store in a database: SQLite in the data folder, or PostgreSQL. `coordinator.store.protocol` has the contract."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import URL, Connection

from coordinator.engine.state import RunState, Transition
from coordinator.store import blobs, fences, load, migrate, queries, removal, tables
from coordinator.store.aside import end_run
from coordinator.store.database import Database, make_migrating_engine, parse_url, sqlite_path, write
from coordinator.store.faults import storage_errors
from coordinator.store.lock import take_folder
from coordinator.store.protocol import EVENTS_PAGE, Store
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
from coordinator.store.write import write_transfers, write_transitions
from muster.errors import NotFoundError, StorageError
from muster.files.disk import is_full, storage_error
from muster.files.folderlock import FolderLock
from muster.files.folders import private_database
from muster.runtime.failpoints import failpoint

Result = TypeVar("Result")


class SqlStore(Store):
    """Open one with `SqlStore.open`."""

    def __init__(self, database: Database, lock: FolderLock | None, newest: int) -> None:
        self._database = database
        self._lock = lock
        self._writing: set[asyncio.Task[list[int]]] = set()
        self._newest = newest
        self._news = asyncio.Event()

    # -- life ------------------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, url: str, *, create: bool = True) -> Self:
        """Opens the database and brings its schema up to date. With SQLite, takes the database's folder for
        this process.

        Raises `ConfigError` "store.url" or "store.driver", `StateError` "store.in_use", `VersionError`
        "store.schema_newer", and without `create` `NotFoundError` "store.not_found" where there is no
        database yet.
        """
        parsed = parse_url(url)
        lock = _take_folder(parsed, create)
        try:
            await asyncio.to_thread(_migrate, parsed, create)
            database = Database(parsed)
            try:
                return cls(database, lock, await database.read(queries.newest_sequence))
            except BaseException:
                database.close()
                raise
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    async def close(self) -> None:
        await asyncio.gather(*self._writing, return_exceptions=True)
        await asyncio.to_thread(self._database.close)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def folder(self) -> Path | None:
        return self._database.folder

    @property
    def where(self) -> str:
        return self._database.where

    # -- writing ---------------------------------------------------------------------------------------------

    async def take_fence(self, holder: str, at: float) -> Fence:
        return await self._database.write(lambda connection: fences.take(connection, holder, at))

    async def _write(self, work: Callable[[Connection], Result], fence: Fence | None) -> Result:
        def fenced(connection: Connection) -> Result:
            fences.check(connection, fence, self.where)
            return work(connection)

        return await self._database.write(fenced)

    async def commit(
        self,
        transitions: Sequence[Transition],
        transfers: Sequence[Transfer] = (),
        *,
        fence: Fence | None = None,
    ) -> list[int]:
        task = asyncio.get_running_loop().create_task(self._commit(transitions, transfers, fence))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return await asyncio.shield(task)

    async def _commit(
        self, transitions: Sequence[Transition], transfers: Sequence[Transfer], fence: Fence | None
    ) -> list[int]:
        kinds = [transition.kind for transition in transitions if transition.kind]

        def work(connection: Connection) -> list[int]:
            sequences = write_transitions(connection, transitions)
            write_transfers(connection, transfers)
            for kind in kinds:
                failpoint(f"{kind}.before")
            return sequences

        sequences = await self._write(work, fence)
        if kinds:
            self._tell(max(sequences))
        for kind in kinds:
            failpoint(f"{kind}.after")
        return sequences

    def _tell(self, sequence: int) -> None:
        """Those who wait that there is an event of this number."""
        self._newest = max(self._newest, sequence)
        self._news.set()
        self._news = asyncio.Event()

    async def end_unread(self, run_id: str, reason: str, at: float, *, fence: Fence | None = None) -> None:
        self._tell(await self._write(lambda c: end_run(c, run_id, reason, at), fence))

    async def forget_blobs(self, digests: Iterable[str], *, fence: Fence | None = None) -> None:
        given_up = list(digests)
        await self._write(lambda connection: blobs.forget(connection, given_up), fence)

    async def remove_run(
        self, run_id: str, at: float, reason: str, *, fence: Fence | None = None
    ) -> frozenset[str]:
        removed, sequence = await self._write(lambda c: removal.remove_run(c, run_id, at, reason), fence)
        self._tell(sequence)
        return removed

    async def named_peers(self) -> frozenset[str]:
        return await self._database.read(queries.named_peers)

    async def prune_peer_events(self, keep: int, *, fence: Fence | None = None) -> None:
        await self._write(lambda c: removal.prune_peer_events(c, keep), fence)

    # -- what happened ---------------------------------------------------------------------------------------

    async def wait_for_events(self, after: int) -> int:
        while self._newest <= after:
            await self._news.wait()
        return self._newest

    async def events(
        self, after: int = 0, run_id: str | None = None, limit: int = EVENTS_PAGE
    ) -> list[EventRow]:
        where = [tables.EVENTS.c.sequence > after]
        if run_id is not None:
            where.append(tables.EVENTS.c.run_id == run_id)
        return await self._database.read(lambda c: queries.events(c, *where, limit=limit))

    async def recent_events(
        self, *, run_id: str | None = None, peer_id: str | None = None, limit: int = 20
    ) -> list[EventRow]:
        where = [tables.EVENTS.c.sequence > 0]
        if run_id is not None:
            where.append(tables.EVENTS.c.run_id == run_id)
        if peer_id is not None:
            where.append(tables.EVENTS.c.peer_id == peer_id)
        return await self._database.read(lambda c: queries.events(c, *where, limit=limit, newest=True))

    async def delivered_sequence(self, assignment_id: str) -> int:
        found = await self._database.read(
            lambda c: queries.event_sequence(c, assignment_id, "assignment.delivered")
        )
        return found or 0

    # -- taking up where things stand ------------------------------------------------------------------------

    async def load_runs(self, unread: dict[str, str] | None = None) -> list[RunState]:
        return await self._database.read(lambda connection: load.load_runs(connection, unread))

    async def load_peers(self) -> list[PeerRecord]:
        return await self._database.read(queries.peer_records)

    async def live_blobs(self) -> frozenset[str]:
        return await self._database.read(blobs.live)

    async def unneeded_blobs(
        self, *, updates_keep_rounds: int, models_keep: int | None, ended_runs_keep: int | None = None
    ) -> frozenset[str]:
        return await self._database.read(
            lambda c: blobs.unneeded(
                c,
                updates_keep_rounds=updates_keep_rounds,
                models_keep=models_keep,
                ended_runs_keep=ended_runs_keep,
            )
        )

    # -- questions -------------------------------------------------------------------------------------------

    async def runs(self, *, after: tuple[float, str] | None = None, limit: int | None = None) -> list[RunRow]:
        where = () if after is None else (queries.behind_run(*after),)
        return await self._database.read(lambda c: queries.runs(c, *where, limit=limit))

    async def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        return await self._database.read(
            lambda c: (Counter(queries.peer_states(c)), Counter(queries.run_states(c)))
        )

    async def run(self, run_id: str) -> RunRow | None:
        return _first(await self._database.read(lambda c: queries.runs(c, tables.RUNS.c.run_id == run_id)))

    async def run_by_request(self, request_id: str) -> RunRow | None:
        return _first(
            await self._database.read(lambda c: queries.runs(c, tables.RUNS.c.request_id == request_id))
        )

    async def warnings(self, run_id: str) -> list[WarningRow]:
        return await self._database.read(lambda c: queries.warnings(c, run_id))

    async def rounds(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[RoundRow]:
        where = (tables.ROUNDS.c.run_id == run_id, tables.ROUNDS.c.number > after)
        return await self._database.read(lambda c: queries.rounds(c, *where, limit=limit))

    async def bare_round(self, run_id: str, number: int) -> tuple[RoundRow, RoundTotals] | None:
        where = (tables.ROUNDS.c.run_id == run_id, tables.ROUNDS.c.number == number)

        def work(connection: Connection) -> tuple[RoundRow, RoundTotals] | None:
            found = _first(queries.rounds(connection, *where))
            if found is None:
                return None
            return found, queries.round_totals(connection, run_id, number)

        return await self._database.read(work)

    async def assignments(
        self, run_id: str, number: int, *, after: tuple[int, str, int] | None = None, limit: int | None = None
    ) -> list[AssignmentRow]:
        where = [tables.ASSIGNMENTS.c.run_id == run_id, tables.ASSIGNMENTS.c.round == number]
        if after is not None:
            where.append(queries.behind_assignment(*after))
        return await self._database.read(lambda c: queries.assignments(c, *where, limit=limit))

    async def folded(self, run_id: str, number: int) -> list[AssignmentRow]:
        where = (tables.ASSIGNMENTS.c.run_id == run_id, tables.ASSIGNMENTS.c.folded_in == number)
        return await self._database.read(lambda c: queries.assignments(c, *where))

    async def round(self, run_id: str, number: int) -> RoundRow | None:
        return await self._database.read(lambda c: queries.round_(c, run_id, number))

    async def assignment(self, assignment_id: str) -> AssignmentRow | None:
        where = tables.ASSIGNMENTS.c.assignment_id == assignment_id
        return _first(await self._database.read(lambda c: queries.assignments(c, where)))

    async def peers(self, *, after: str = "", limit: int | None = None) -> list[PeerRow]:
        where = tables.PEERS.c.peer_id > after
        return await self._database.read(lambda c: queries.peers(c, where, limit=limit))

    async def peer(self, peer_id: str) -> PeerRow | None:
        return _first(
            await self._database.read(lambda c: queries.peers(c, tables.PEERS.c.peer_id == peer_id))
        )

    async def models(self, run_id: str, *, after: int = -1, limit: int | None = None) -> list[ModelRow]:
        where = (tables.MODELS.c.run_id == run_id, tables.MODELS.c.version > after)
        return await self._database.read(lambda c: queries.models(c, *where, limit=limit))

    async def model(
        self, run_id: str, *, version: int | None = None, round: int | None = None
    ) -> ModelRow | None:
        where = [tables.MODELS.c.run_id == run_id]
        if version is not None:
            where.append(tables.MODELS.c.version == version)
        if round is not None:
            where.append(tables.MODELS.c.round == round)
        return _first(await self._database.read(lambda c: queries.models(c, *where, newest=1)))

    async def model_by_digest(self, run_id: str, digest: str) -> ModelRow | None:
        where = (tables.MODELS.c.run_id == run_id, tables.MODELS.c.digest == digest)
        return _first(await self._database.read(lambda c: queries.models(c, *where, newest=1)))

    async def deltas(self, run_id: str, after: int, upto: int) -> list[str]:
        return await self._database.read(lambda c: queries.deltas(c, run_id, after, upto))

    async def model_by_state(self, run_id: str, names: Sequence[str], digest: str) -> ModelRow | None:
        version = await self._database.read(lambda c: queries.version_with(c, run_id, names, digest))
        return None if version is None else await self.model(run_id, version=version)

    async def optimizer_states(self, run_id: str, version: int) -> Mapping[str, str]:
        return await self._database.read(lambda c: queries.optimizer_states(c, run_id, version))


def _first(rows: Sequence[Result]) -> Result | None:
    return rows[0] if rows else None


def _take_folder(url: URL, create: bool) -> FolderLock | None:
    path = sqlite_path(url)
    if path is None:
        return None
    if not create and not path.exists():
        raise _not_found(str(path))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = take_folder(path.parent)
        private_database(path)  # the hashes of secrets lie there
        return lock
    except OSError as error:
        if is_full(error):
            raise storage_error(path.parent, error) from error
        raise StorageError(
            "store.unavailable",
            f"the data folder {path.parent} cannot be used",
            cause=str(error),
            fix="see that it is a folder on a disk with room, and that this user may write to it",
        ) from error


def _migrate(url: URL, create: bool) -> None:
    where = url.render_as_string(hide_password=True)

    def work(connection: Connection) -> None:
        if not create and migrate.current(connection) is None:
            raise _not_found(where)
        migrate.upgrade(connection)

    with storage_errors(where):
        write(make_migrating_engine(url), work)
    path = sqlite_path(url)
    if path is not None:
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the database's own name, too, is on the disk
        finally:
            os.close(descriptor)


def _not_found(where: str) -> NotFoundError:
    return NotFoundError(
        "store.not_found",
        f"there is no Muster database at {where}",
        cause="no coordinator has been started on it yet",
        fix="muster serve",
    )
