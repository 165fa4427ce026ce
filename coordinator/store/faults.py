"""What a database raises, told as Muster's own errors. A defect (a wrong column, a wrong type) is passed on
as it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from enum import StrEnum

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from muster.errors import MusterError, StateError, StorageError

_SQLITE_FULL = sqlite3.SQLITE_FULL
_SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SQLITE_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
}
_POSTGRES_FULL = "53100"
# Classes of SQLSTATE: no connection, no resources, an operator's intervention, a failure outside the server.
_POSTGRES_UNAVAILABLE = ("08", "53", "57", "58")


class Trouble(StrEnum):
    """What to do about a write that failed."""

    TRANSIENT = (
        "transient"  # the store takes nothing for now, whatever it is: try again later, ever more seldom
    )
    CONFLICT = "conflict"  # rows are not as believed here: read them anew and decide again
    FENCED = "fenced"  # another coordinator has taken over: this one ends
    PERMANENT = "permanent"  # what was to be written can never be, or the store is damaged: no retry mends it


def trouble(error: BaseException) -> Trouble:
    if isinstance(error, StorageError):
        return {"store.damaged": Trouble.PERMANENT, "store.fenced": Trouble.FENCED}.get(
            error.id, Trouble.TRANSIENT
        )
    if isinstance(error, StateError) and error.id == "store.conflict":
        return Trouble.CONFLICT
    return Trouble.PERMANENT


@contextmanager
def storage_errors(where: str) -> Generator[None]:
    """`where` names the database for people, without its password."""
    try:
        yield
    except PoolTimeoutError as error:
        raise _unavailable(where, "every connection is in use") from error
    except (OverflowError, UnicodeError) as error:  # of SQLite's driver, before the database is asked
        raise unstorable(str(error)) from error
    except DBAPIError as error:
        known = _classify(error, where)
        if known is None:
            raise
        raise known from error


def _classify(error: DBAPIError, where: str) -> MusterError | None:
    cause = str(error.orig).strip() or type(error.orig).__name__
    if isinstance(error, IntegrityError):
        return conflict("a row contradicts what is stored", cause)
    if isinstance(error, DataError):
        return unstorable(cause)
    if isinstance(error.orig, sqlite3.Error):
        return _classify_sqlite(error.orig, where, cause)
    state = getattr(error.orig, "sqlstate", None)
    if state == _POSTGRES_FULL:
        return _full(where, cause)
    if error.connection_invalidated or (state is not None and state.startswith(_POSTGRES_UNAVAILABLE)):
        return _unavailable(where, cause)
    if state is None and type(error.orig).__name__ in ("OperationalError", "ConnectionTimeout"):
        return _unavailable(where, cause)
    return None


def _classify_sqlite(error: sqlite3.Error, where: str, cause: str) -> MusterError | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extension
    if code == _SQLITE_FULL:
        return _full(where, cause)
    if code in _SQLITE_DAMAGED:
        return StorageError(
            "store.damaged",
            f"{where} is not a sound database",
            cause=cause,
            fix="restore it from a backup, or start with an empty data folder",
        )
    if code in _SQLITE_UNAVAILABLE:
        return _unavailable(where, cause)
    return None


def conflict(message: str, cause: str) -> StateError:
    return StateError(
        "store.conflict",
        message,
        cause=cause,
        fix="nothing was written; if it comes again, look for a second coordinator on the same database",
    )


def fenced(where: str, holder: str) -> StorageError:
    """`holder` has claimed the store after whoever wanted to write. For callers this passes, as any store that takes
    nothing does: they find the other coordinator, or this one's successor."""
    return StorageError(
        "store.fenced",
        f"another coordinator has taken over {where}",
        cause=f"{holder or 'somebody'} was started on it later, and only one may write; nothing was written",
        fix="keep one of the two: stop the other, or give this one a database of its own (coordinator.database_url)",
    )


def unstorable(cause: str) -> StateError:
    return StateError(
        "store.unstorable",
        "a value is nothing that the database can hold",
        cause=cause,
        fix="a whole number has 64 bits at most, and a text no NUL; nothing was written",
    )


def _full(where: str, cause: str) -> StorageError:
    return StorageError(
        "storage.disk_full",
        f"no room left for {where}",
        cause=cause,
        fix="free some space; nothing was written, and work goes on by itself",
    )


def _unavailable(where: str, cause: str) -> StorageError:
    return StorageError(
        "store.unavailable",
        f"{where} does not answer",
        cause=cause,
        fix="see that the database is up and that this user may write to it",
    )
