"""Connections: SQLite set up to lose nothing, PostgreSQL as it comes.

A transaction is plain blocking code, run whole on a thread of the database's own: one hop between threads for
each transaction, where an asynchronous driver makes one for each statement and more (measured: five times as
long).

A writer's transaction is the only one that writes until it ends, on both: SQLite by BEGIN IMMEDIATE,
PostgreSQL by an advisory lock that ends with the transaction. So event numbers are in the order of the
commits, and whoever has read up to a number has missed nothing below it. A reader sees one state of the
database throughout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from coordinator.store.faults import storage_errors
from muster.errors import ConfigError

READERS = 4
BUSY_TIMEOUT_SECONDS = 5.0  # how long a write waits while somebody's shell holds SQLite's lock
CONNECT_TIMEOUT_SECONDS = 10
ANSWER_TIMEOUT_SECONDS = 30  # how long PostgreSQL has for a statement, and the network for its bytes
WRITER_LOCK = 0x6D7573746572  # "muster"; the number of the advisory lock

_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}

Result = TypeVar("Result")


def parse_url(url: str) -> URL:
    """A database URL; the driver is ours to choose. Raises `ConfigError` "store.url"."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise _bad_url("the database URL cannot be read", str(error)) from None
    driver = _DRIVERS.get(parsed.drivername.partition("+")[0])
    if driver is None:
        raise _bad_url(f"no support for {parsed.drivername!r} databases", "")
    if driver.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise _bad_url("the database URL names no file", "what lies in memory only is lost with the process")
    if driver.startswith("sqlite"):
        # Taken from the text: not every version of SQLAlchemy reads %3F in a path as the ? that it means.
        parsed = parsed.set(database=unquote(url.partition(":///")[2].partition("?")[0]))
    return parsed.set(drivername=driver)


def _bad_url(message: str, cause: str) -> ConfigError:
    return ConfigError(
        "store.url",
        message,
        cause=cause,
        fix="write sqlite:////folder/muster.db or postgresql://user:password@host/database",
    )


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite URL, or None for another database."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


class Database:
    """`read` and `write` raise what `told` tells of the database, and what `work` raises as it is."""

    def __init__(self, url: URL) -> None:
        self.where = url.render_as_string(hide_password=True)
        path = sqlite_path(url)
        self.folder = None if path is None else path.parent
        with storage_errors(self.where):
            self._engine = _make_engine(url)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """Runs `work` as one transaction, in the order of the calls. An exception in it leaves nothing
        behind."""
        return await self._on(self._writer, lambda: write(self._engine, work))

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        return await self._on(self._readers, lambda: _read(self._engine, work))

    async def _on(self, threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        with storage_errors(self.where):
            return await asyncio.get_running_loop().run_in_executor(threads, work)

    def close(self) -> None:
        """Waits for what is under way."""
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()


def write(engine: Engine, work: Callable[[Connection], Result]) -> Result:
    with engine.connect() as connection:
        connection.execution_options(muster_writes=True)
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITER_LOCK})
            return work(connection)


def _read(engine: Engine, work: Callable[[Connection], Result]) -> Result:
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ")
        return work(connection)


def make_migrating_engine(url: URL) -> Engine:
    """Without foreign keys: SQLite changes a table by making it anew, which would empty those that refer to
    it. Without a limit on how long a statement takes."""
    return _make_engine(url, migrates=True)


def _make_engine(url: URL, *, migrates: bool = False) -> Engine:
    options: dict[str, Any] = {"poolclass": NullPool} if migrates else {"pool_size": READERS + 1}
    if sqlite_path(url) is not None:
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, **options)
        _set_up_sqlite(engine, foreign_keys=not migrates)
        return engine
    connect: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "tcp_user_timeout": ANSWER_TIMEOUT_SECONDS * 1000,
    }
    if not migrates:
        connect["options"] = f"-c statement_timeout={ANSWER_TIMEOUT_SECONDS}s"
        options["pool_pre_ping"] = True  # a server that came back is noticed before a transaction begins
    try:
        return create_engine(url, connect_args=connect, **options)
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(
            "store.driver",
            "PostgreSQL needs its driver",
            cause=str(error),
            fix="pip install 'muster-fl[postgres]'",
        ) from error


def _text(stored: bytes) -> str:
    """SQLite checks no text; one that is not UTF-8 must not cost all the others that are asked for with it."""
    return stored.decode(errors="replace")


def _set_up_sqlite(engine: Engine, *, foreign_keys: bool) -> None:
    pragmas = (
        "journal_mode = WAL",
        "synchronous = FULL",  # a commit that was answered survives a power cut
        "fullfsync = ON",  # on macOS fsync alone stops at the drive's cache
        "checkpoint_fullfsync = ON",
        f"foreign_keys = {'ON' if foreign_keys else 'OFF'}",
    )

    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction by itself
        connection.text_factory = _text
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").close()

    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("muster_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
