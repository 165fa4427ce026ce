"""Brings a database to the schema of this version of Muster, or leaves it as it was.

All steps run in one transaction that both databases can roll back (SQLite too, once BEGIN is explicit), so a
process killed half-way leaves the old schema with its data. Each step is a file in `migrations/versions`; a
file that has been released is never changed.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from muster.errors import StorageError, VersionError

if TYPE_CHECKING:
    from alembic.config import Config

SCRIPTS = Path(__file__).parent / "migrations"
VERSIONS = SCRIPTS / "versions"
# Alembic keeps the connection of the migration under way in module globals: two at once write into each other's.
_UNDER_WAY = threading.Lock()


def head(versions: Path = VERSIONS) -> str:
    """The schema that this version of Muster uses."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config(versions)).get_current_head() or ""


def current(connection: Connection) -> str | None:
    """The schema that the database has; None if it has none."""
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


def upgrade(connection: Connection, versions: Path = VERSIONS) -> None:
    """Runs the missing steps in the caller's transaction.

    Raises `VersionError` "store.schema_newer" if the database was made by a later Muster, `StorageError`
    "store.damaged" if rows would be left that refer to nothing.
    """
    from alembic import command
    from alembic.script import ScriptDirectory

    config = _config(versions)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    have = current(connection)
    if have is not None and have not in known:
        raise VersionError(
            "store.schema_newer",
            f"the database has schema {have!r}, which this version of Muster does not know",
            cause="a later version of Muster has used it",
            fix="upgrade Muster here: pip install --upgrade muster-fl",
        )
    config.attributes["connection"] = connection
    if connection.dialect.name == "postgresql":
        # Checks that wait for the commit would keep a step from changing a table that an earlier one has written to.
        connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    with _UNDER_WAY:
        command.upgrade(config, "head")
    if connection.dialect.name == "sqlite" and connection.execute(text("PRAGMA foreign_key_check")).first():
        raise StorageError(
            "store.damaged",
            "after the change of schema some rows would refer to others that are not there",
            cause="the database was not sound before",
            fix="restore it from a backup; it is left as it was",
        )


def _config(versions: Path) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("version_locations", str(versions).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
