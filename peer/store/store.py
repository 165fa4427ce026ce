"""The peer store: everything of a peer that must outlive its process.

One SQLite database (WAL, synchronous FULL) and a folder of files beside it. The database holds the peer's
identity, the assignments it has taken, and which file is a state array after a round, keyed by (run, lineage,
round, key), where a lineage is the role in which updates are made that hand the state on; the files hold the
arrays and the updates not yet delivered. A training job writes new files; `stage` ties them to its assignment,
`commit`, in one transaction, makes them the state after its round once the coordinator has given its receipt, and
`settle` keeps of all states of a lineage the one after the last round that counts: a residual has changed exactly
if the update that it belongs to is in the model.

Files are written and synced before a row names them, and removed after no row names them any more; what a
crash leaves between is removed by the sweep of the next start.

Not safe for concurrent use: the daemon calls it from one thread of its own. A second process that opens the
same folder is refused.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType

from muster.errors import StateError, StorageError
from muster.files.disk import is_full, make_folder, storage_error
from muster.files.folderlock import FolderLock
from muster.files.folders import private_database
from muster.runtime.randomness import MACHINE, hex_id, secret_text
from muster.work import TRAIN

SCHEMA_VERSION = 3
LOCK_NAME = "peer.lock"
_FIX = "stop that peer first, or join under another name (--name) or with another data_dir"

_SCHEMA = """
CREATE TABLE identity (name TEXT PRIMARY KEY, secret TEXT NOT NULL) STRICT;
CREATE TABLE runs (run_id TEXT PRIMARY KEY, used_at REAL NOT NULL) STRICT;
CREATE TABLE assignments (
    assignment_id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL,
    offer BLOB NOT NULL,
    deadline_at REAL NOT NULL,
    update_file TEXT,
    update_digest TEXT,
    report BLOB
) STRICT;
CREATE TABLE staged (
    assignment_id TEXT NOT NULL REFERENCES assignments ON DELETE CASCADE,
    run_id TEXT NOT NULL,
    key TEXT NOT NULL,
    file TEXT NOT NULL,
    PRIMARY KEY (assignment_id, key)
) STRICT;
"""
_STATE = """
CREATE TABLE state (
    run_id TEXT NOT NULL,
    lineage TEXT NOT NULL,
    round INTEGER NOT NULL,
    key TEXT NOT NULL,
    file TEXT NOT NULL,
    PRIMARY KEY (run_id, lineage, round, key)
) STRICT;
"""
_FROM_1 = f"DROP TABLE state; {_STATE}"  # it told no rounds, so that no state of it can be trusted to count
_FROM_2 = f"""
ALTER TABLE state RENAME TO older;
{_STATE}
INSERT INTO state (run_id, lineage, round, key, file) SELECT run_id, '{TRAIN}', round, key, file FROM older;
DROP TABLE older;
"""


@dataclass(frozen=True, kw_only=True)
class Held:
    """An assignment that the peer has taken and not yet forgotten, as far as it is durable.

    With neither an update nor a report it has still to be worked on; with an update (trained) it has to be
    delivered; with a report it has ended here and the coordinator has yet to hear of it.
    """

    assignment_id: str
    run_id: str
    offer: bytes  # a serialized muster.v1.Assignment
    deadline_at: float
    update: Path | None = None
    update_digest: str = ""
    stateful: bool = False  # whether the update hands on state, which only its receipt makes count
    report: bytes = b""  # a serialized muster.v1.AssignmentReport


class PeerStore:
    """Opens or makes the store in `folder`; `random` draws its secret and names of files.

    Raises `StateError` `peer.in_use` if another process has it open, `StorageError` if the disk refuses.
    """

    def __init__(self, folder: Path, random: Random = MACHINE) -> None:
        self.folder = folder
        self._random = random
        self._files = folder / "files"
        for each in (folder, self._files):
            make_folder(each, "peer.data_dir, --data-dir")
        try:
            self._lock = FolderLock.take(folder, LOCK_NAME, error_id="peer.in_use", fix=_FIX)
        except OSError as error:
            raise _storage_error(folder, error) from error
        try:
            self._db = self._opened()
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            self._lock.release()
            raise

    def _opened(self) -> sqlite3.Connection:
        try:
            path = self.folder / "peer.sqlite"
            private_database(path)  # the secret lies there
            return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise _storage_error(self.folder, error) from error

    def _prepare(self) -> None:
        try:
            self._db.row_factory = sqlite3.Row
            # Exclusive: the lock of the first statement stays until close, and no other process gets in.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version in {0, 1, 2}:
                make = {0: _SCHEMA + _STATE, 1: _FROM_1, 2: _FROM_2}[version]
                version = SCHEMA_VERSION
                self._db.executescript(f"BEGIN IMMEDIATE; {make} PRAGMA user_version = {version}; COMMIT;")
        except sqlite3.DatabaseError as error:
            raise self._translate(error) from error
        if version != SCHEMA_VERSION:
            raise StateError(
                "peer.store_version",
                f"the peer store in {self.folder} has schema {version}, not {SCHEMA_VERSION}",
                fix="run the version of Muster that wrote it, or join with another data_dir",
            )
        self._sweep()

    def close(self) -> None:
        self._db.close()
        self._lock.release()

    def __enter__(self) -> PeerStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- identity --------------------------------------------------------------------------------------------

    def secret(self, name: str) -> str:
        """The secret by which the coordinator knows `name` again: drawn once, then always the same."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO identity (name, secret) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
                (name, secret_text(self._random)),
            )
            return str(self._db.execute("SELECT secret FROM identity WHERE name = ?", (name,)).fetchone()[0])

    # -- assignments -----------------------------------------------------------------------------------------

    def accept(self, held: Held, *, now: float) -> None:
        """Takes an offer. One that is held already gets its new deadline and what else is told anew."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO assignments (assignment_id, run_id, offer, deadline_at, report)"
                " VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (assignment_id) DO UPDATE SET deadline_at = excluded.deadline_at, offer = excluded.offer",
                (held.assignment_id, held.run_id, held.offer, held.deadline_at, held.report or None),
            )
            self._db.execute(
                "INSERT INTO runs (run_id, used_at) VALUES (?, ?)"
                " ON CONFLICT (run_id) DO UPDATE SET used_at = excluded.used_at",
                (held.run_id, now),
            )

    def held(self) -> list[Held]:
        """All assignments not yet forgotten, oldest first."""
        rows = self._db.execute(
            "SELECT *, EXISTS (SELECT 1 FROM staged WHERE staged.assignment_id = assignments.assignment_id)"
            " AS stateful FROM assignments ORDER BY rowid"
        ).fetchall()
        return [
            Held(
                assignment_id=row["assignment_id"],
                run_id=row["run_id"],
                offer=row["offer"],
                deadline_at=row["deadline_at"],
                update=self._files / row["update_file"] if row["update_file"] else None,
                update_digest=row["update_digest"] or "",
                stateful=bool(row["stateful"]),
                report=row["report"] or b"",
            )
            for row in rows
        ]

    def stage(self, assignment_id: str, update: Path, digest: str, state: Mapping[str, Path]) -> None:
        """Training is done: `update` waits for delivery, and `state` (key to file) waits for its receipt.

        The files begin with a `new_stem` and are synced. Does nothing for an assignment no longer held.
        """
        with self._transaction():
            row = self._db.execute(
                "UPDATE assignments SET update_file = ?, update_digest = ? WHERE assignment_id = ?"
                " RETURNING run_id",
                (update.name, digest, assignment_id),
            ).fetchone()
            if row is None:
                return
            self._db.execute("DELETE FROM staged WHERE assignment_id = ?", (assignment_id,))
            self._db.executemany(
                "INSERT INTO staged (assignment_id, run_id, key, file) VALUES (?, ?, ?, ?)",
                [(assignment_id, row["run_id"], key, file.name) for key, file in state.items()],
            )

    def commit(self, assignment_id: str, round: int, lineage: str = TRAIN) -> None:
        """The receipt is here: staged state becomes the lineage's after the round, and the assignment is forgotten.

        The state before stays too, since the round may yet be dropped; `settle` decides.
        """
        with self._transaction():
            self._db.execute(
                "INSERT INTO state (run_id, lineage, round, key, file)"
                " SELECT run_id, ?, ?, key, file FROM staged WHERE assignment_id = ?"
                " ON CONFLICT (run_id, lineage, round, key) DO UPDATE SET file = excluded.file",
                (lineage, round, assignment_id),
            )
            self._db.execute("DELETE FROM assignments WHERE assignment_id = ?", (assignment_id,))

    def rollback(self, assignment_id: str) -> None:
        """The update will never count: what it staged is dropped and the assignment is forgotten."""
        with self._transaction():
            self._db.execute("DELETE FROM assignments WHERE assignment_id = ?", (assignment_id,))

    def end(self, assignment_id: str, report: bytes) -> None:
        """The assignment has ended here without an update; `report` is kept until the coordinator has it."""
        with self._transaction():
            self._db.execute("DELETE FROM staged WHERE assignment_id = ?", (assignment_id,))
            self._db.execute(
                "UPDATE assignments SET report = ?, update_file = NULL, update_digest = NULL"
                " WHERE assignment_id = ?",
                (report, assignment_id),
            )

    # -- state -----------------------------------------------------------------------------------------------

    def settle(self, run_id: str, counted_round: int, lineage: str = TRAIN) -> dict[str, Path]:
        """The state arrays of a lineage as they were after the last round that counts; its others go.

        Rounds after it were dropped with their updates, so what they changed is rolled back. A state that is
        not here, on a new disk say, is begun anew.
        """
        with self._transaction():
            self._db.execute(
                "DELETE FROM state WHERE run_id = ? AND lineage = ? AND round <> ?",
                (run_id, lineage, counted_round),
            )
        return self.state_after(run_id, counted_round, lineage)

    def state_after(self, run_id: str, round: int, lineage: str = TRAIN) -> dict[str, Path]:
        """The state arrays of a lineage as they were after a round, and nothing goes; empty if none are here."""
        rows = self._db.execute(
            "SELECT key, file FROM state WHERE run_id = ? AND lineage = ? AND round = ?",
            (run_id, lineage, round),
        ).fetchall()
        return {row["key"]: self._files / row["file"] for row in rows}

    def runs(self) -> list[str]:
        """Runs of which something is kept, those first that were worked on longest ago."""
        return [row["run_id"] for row in self._db.execute("SELECT run_id FROM runs ORDER BY used_at, run_id")]

    def forget(self, run_id: str) -> None:
        """A run is over: its state, its assignments and all their files go."""
        with self._transaction():
            for table in ("assignments", "state", "runs"):
                self._db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))

    def forget_unused(self, *, before: float) -> list[str]:
        """Forgets every run without an open assignment that was last worked on before the time `before`."""
        rows = self._db.execute(
            "SELECT run_id FROM runs WHERE used_at < ? AND run_id NOT IN (SELECT run_id FROM assignments)",
            (before,),
        ).fetchall()
        for row in rows:
            self.forget(row["run_id"])
        return [row["run_id"] for row in rows]

    # -- files -----------------------------------------------------------------------------------------------

    def new_stem(self) -> Path:
        """The beginning of paths never used before, for a job to write to ("STEM.update", "STEM.state.0").

        Until a row names such a file, `discard` and a restart remove it.
        """
        return self._files / hex_id(self._random, 12)

    def discard(self, stem: Path) -> None:
        """Removes the files that begin with `stem` and that no row names."""
        named = self._named()
        for path in self._files.glob(f"{stem.name}.*"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def _named(self) -> set[str]:
        query = (
            "SELECT update_file FROM assignments UNION SELECT file FROM staged UNION SELECT file FROM state"
        )
        return {row[0] for row in self._db.execute(query) if row[0]}

    def _sweep(self) -> None:
        named = self._named()
        for path in self._files.iterdir():
            if path.name not in named:
                path.unlink()

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        """All or nothing; files that it leaves without a row are removed once it is durable."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                before = self._named()
                yield
                unnamed = before - self._named()
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise self._translate(error) from error
        for name in unnamed:
            (self._files / name).unlink(missing_ok=True)

    def _translate(self, error: sqlite3.DatabaseError) -> StateError | StorageError:
        if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StateError(
                "peer.in_use",
                f"another process has the peer store in {self.folder} open",
                cause="a peer of this name is running on this machine",
                fix="stop it first, or join under another name",
            )
        return _storage_error(self.folder, error)


def _storage_error(folder: Path, error: Exception) -> StorageError:
    if isinstance(error, OSError) and is_full(error):
        return storage_error(folder, error)
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return StorageError(
        "storage.disk_full" if full else "peer.store_unavailable",
        f"the peer store in {folder} cannot be used: {error}",
        cause="the disk is full" if full else "",
        fix="free some space"
        if full
        else "check that the folder exists, is writable and lies on a healthy disk",
    )
