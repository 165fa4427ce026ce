import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, text

from coordinator.store import SqlStore, migrate
from coordinator.store.database import make_migrating_engine, parse_url, write
from coordinator.store.tables import METADATA
from coordinator.store.write import write_transitions
from muster.errors import StorageError, VersionError
from muster.work import Work

# A step as a later version of Muster may bring it: it adds a table and a column, rewrites rows, makes a table anew
# (as SQLite must) and, if told so, dies when most of it is done.
NEXT_STEP = '''
"""A step of the time to come."""
import os
import signal

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"

def upgrade():
    op.create_table("later", sa.Column("id", sa.Text(), primary_key=True))
    op.add_column("peers", sa.Column("colour", sa.Text(), nullable=False, server_default="red"))
    op.execute("UPDATE peers SET reason = 'rewritten'")
    with op.batch_alter_table("runs") as runs:
        runs.alter_column("spec_toml", existing_type=sa.Text(), nullable=True)
    if os.environ.get("KILL_THE_MIGRATION"):
        os.kill(os.getpid(), signal.SIGKILL)
'''

UPGRADE = """
import sys
from pathlib import Path
from coordinator.store import migrate
from coordinator.store.database import make_migrating_engine, parse_url, write

engine = make_migrating_engine(parse_url(sys.argv[1]))
write(engine, lambda connection: migrate.upgrade(connection, Path(sys.argv[2])))
"""


@pytest.fixture
def next_versions(tmp_path: Path) -> Path:
    folder = tmp_path / "versions"
    shutil.copytree(migrate.VERSIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "v9999_later.py").write_text(NEXT_STEP.format(head=migrate.head()))
    return folder


def _look(url: str, work: Any) -> Any:
    engine = create_engine(parse_url(url))
    try:
        with engine.connect() as connection:
            return work(connection)
    finally:
        engine.dispose()


def _schema(connection: Connection) -> tuple[str | None, bool, bool, list[str]]:
    found = inspect(connection)
    columns = [column["name"] for column in found.get_columns("peers")] if found.has_table("peers") else []
    reasons = connection.execute(text("SELECT reason FROM peers")).scalars().all() if columns else []
    return migrate.current(connection), found.has_table("later"), "colour" in columns, list(reasons)


async def test_the_migrations_make_the_tables_that_the_code_uses(
    database_url: str, sql_store: SqlStore
) -> None:
    def differences(connection: Connection) -> Any:
        # Alembic takes SQLite's empty default for another one.
        defaults = connection.dialect.name == "postgresql"
        options = {"compare_type": True, "compare_server_default": defaults}
        return compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)

    assert _look(database_url, differences) == []

    def filtered(connection: Connection) -> list[str]:
        dialect = connection.dialect.name
        found = inspect(connection).get_indexes("assignments")
        where = {str(index["name"]): index["dialect_options"].get(f"{dialect}_where") for index in found}
        return sorted(name for name, condition in where.items() if condition is not None)

    assert _look(database_url, filtered) == [
        "ix_assignments_blob",
        "ix_assignments_carried",
        "ux_assignments_delivered",
    ]


async def test_opening_again_changes_nothing(database_url: str, script: Any) -> None:
    for expected in (0, 1):
        store = await SqlStore.open(database_url)
        assert len(await store.load_peers()) == expected
        await store.commit([script.peer(f"p{expected}")])
        await store.close()
    assert _look(database_url, _schema)[0] == migrate.head()


def _upgrade_in_child(url: str, versions: Path, **environment: str) -> int:
    command = [sys.executable, "-c", UPGRADE, url, str(versions)]
    return subprocess.run(command, env=os.environ | environment, check=False).returncode


async def test_a_first_migration_killed_half_way_leaves_nothing(
    database_url: str, next_versions: Path
) -> None:
    path = parse_url(database_url).database
    if path is not None and database_url.startswith("sqlite"):
        Path(path).parent.mkdir()
    assert _upgrade_in_child(database_url, next_versions, KILL_THE_MIGRATION="1") == -signal.SIGKILL
    assert _look(database_url, lambda connection: inspect(connection).get_table_names()) == []
    store = await SqlStore.open(database_url)
    await store.close()


async def test_a_later_migration_killed_half_way_leaves_the_old_schema(
    database_url: str, next_versions: Path, script: Any
) -> None:
    store = await SqlStore.open(database_url)
    await store.commit([script.peer("a", reason="as it was"), script.run(), script.round(1)])
    await store.close()

    assert _upgrade_in_child(database_url, next_versions, KILL_THE_MIGRATION="1") == -signal.SIGKILL
    assert _look(database_url, _schema) == (migrate.head(), False, False, ["as it was"])
    store = await SqlStore.open(database_url)  # the old version of Muster works on
    assert len(await store.rounds("r1")) == 1
    await store.close()

    assert _upgrade_in_child(database_url, next_versions) == 0
    assert _look(database_url, _schema) == ("9999", True, True, ["rewritten"])
    assert _look(database_url, lambda c: c.execute(text("SELECT count(*) FROM rounds")).scalar_one()) == 1

    with pytest.raises(VersionError) as caught:
        await SqlStore.open(database_url)
    assert caught.value.id == "store.schema_newer"
    assert "9999" in caught.value.message
    assert "upgrade" in caught.value.fix


async def test_rows_that_refer_to_nothing_stop_a_migration(tmp_path: Path, next_versions: Path) -> None:
    """SQLite checks no reference while a table is made anew, so they are all checked at the end."""
    url = f"sqlite:///{tmp_path / 'muster.db'}"
    store = await SqlStore.open(url)
    await store.close()
    engine = make_migrating_engine(parse_url(url))
    orphan = "INSERT INTO models VALUES ('r?', 0, 0, 'd', 1, 'l', 0.0, 0)"
    write(engine, lambda connection: connection.execute(text(orphan)))
    with pytest.raises(StorageError, match="refer to others") as caught:
        write(engine, lambda connection: migrate.upgrade(connection, next_versions))
    assert caught.value.id == "store.damaged"
    assert _look(url, _schema)[:3] == (migrate.head(), False, False)


async def test_what_was_asked_of_a_peer_becomes_one_value(
    database_url: str, tmp_path: Path, script: Any
) -> None:
    """From schema 0005, in which role and base had columns of their own."""
    older = _versions(tmp_path, without=("v000[6-9]*", "v00[1-9]*"))

    def fill(connection: Connection) -> None:
        migrate.upgrade(connection, older)
        rows = [script.peer("a"), script.run(model_version=1)]
        write_transitions(connection, [replace(row, kind="") for row in rows])
        columns = (
            "assignment_id, run_id, round, peer_id, role, attempt, base_version, state, reason, offered_at"
        )
        for name, role, base in (("r1.1.a.1", "train", 0), ("r1.e1.a.1", "evaluate", 1)):
            values = f"'{name}', 'r1', 1, 'a', '{role}', 1, {base}, 'DELIVERED', 'there', 1.0"
            connection.execute(text(f"INSERT INTO assignments ({columns}) VALUES ({values})"))

    _fill(database_url, fill)
    store = await SqlStore.open(database_url)
    found = await store.assignments("r1", 1)
    await store.close()
    assert [(row.work, row.evaluation) for row in found] == [
        (Work(role="train", base=0), False),
        (Work(role="evaluate", base=1), True),
    ]


async def test_of_earlier_events_nobody_knows_who_caused_them(
    database_url: str, tmp_path: Path, script: Any
) -> None:
    """From schema 0009."""
    older = _versions(tmp_path, without=("v001*",))

    def fill(connection: Connection) -> None:
        migrate.upgrade(connection, older)
        columns = "sequence, at, kind, run_id, round, assignment_id, peer_id, reason, data_json"
        values = "1, 2.0, 'peer.enrolled', '', 0, '', 'a', 'as it was', '{}'"
        connection.execute(text(f"INSERT INTO events ({columns}) VALUES ({values})"))

    _fill(database_url, fill)
    store = await SqlStore.open(database_url)
    await store.commit([replace(script.peer("b"), actor="peer:b")])
    found = [(event.reason, event.actor) for event in await store.events()]
    await store.close()
    assert found == [("as it was", ""), ("peer.enrolled, as told", "peer:b")]


def _versions(tmp_path: Path, *, without: tuple[str, ...]) -> Path:
    older = tmp_path / "older"
    shutil.copytree(migrate.VERSIONS, older, ignore=shutil.ignore_patterns("__pycache__", *without))
    return older


def _fill(url: str, work: Callable[[Connection], None]) -> None:
    path = parse_url(url).database
    if path is not None and url.startswith("sqlite"):
        Path(path).parent.mkdir()
    engine = make_migrating_engine(parse_url(url))
    write(engine, work)
    engine.dispose()


async def test_a_committed_round_of_the_fifth_schema_is_taken_over(
    database_url: str, tmp_path: Path, script: Any
) -> None:
    """Steps that write to a table and then change it have to work in one transaction, on PostgreSQL too."""
    older = _versions(tmp_path, without=("v000[6-9]*", "v00[1-9]*"))
    work = {
        "assignment_id": "r1.1.a.1",
        "run_id": "r1",
        "round": 1,
        "peer_id": "a",
        "role": "train",
        "attempt": 1,
        "base_version": 0,
        "state": "DELIVERED",
        "reason": "there",
        "offered_at": 1.0,
        "digest": "abc",
    }

    def fill(connection: Connection) -> None:
        migrate.upgrade(connection, older)
        rows = [script.peer("a"), script.run(model_version=1), script.round(1, "COMMITTED")]
        write_transitions(connection, [replace(row, kind="") for row in rows])
        names = ", ".join(f":{name}" for name in work)
        connection.execute(text(f"INSERT INTO assignments ({', '.join(work)}) VALUES ({names})"), work)

    _fill(database_url, fill)
    store = await SqlStore.open(database_url)
    (found,) = await store.folded("r1", 1)
    await store.close()
    assert (found.peer_id, found.work.role, found.work.base) == ("a", "train", 0)
