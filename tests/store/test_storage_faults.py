"""The disk is full, the server is gone: told by name, nothing half-written, and work goes on when it is over."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from coordinator.store import SqlStore, Store
from muster.errors import StorageError


async def test_a_full_disk_under_sqlite(tmp_path: Path, script: Any) -> None:
    store = await SqlStore.open(f"sqlite:///{tmp_path / 'muster.db'}")

    def limit(connection: Connection, pages: int) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    # The pages that there are now, and no more: SQLite then fails as on a disk without room.
    await store._database.write(lambda connection: limit(connection, 1))
    written = 0
    with pytest.raises(StorageError) as caught:
        for written in range(1000):
            peers = [script.peer(f"p{written}.{i}", secret_hash="s" * 500) for i in range(10)]
            await store.commit(peers)
    assert caught.value.id == "storage.disk_full"
    assert "nothing was written" in caught.value.fix

    assert len(await store.load_peers()) == 10 * written
    assert len(await store.events(limit=10_000)) == 10 * written
    await store._database.write(lambda connection: limit(connection, 2**30))
    assert await store.commit([script.peer("a")]) == [10 * written + 1]
    await store.close()


async def test_a_full_disk_under_postgresql(postgres_url: str, script: Any) -> None:
    store = await SqlStore.open(postgres_url)
    await store._database.write(_fill_the_disk)
    with pytest.raises(StorageError) as caught:
        await store.commit([script.peer("a"), script.run()])
    assert caught.value.id == "storage.disk_full"
    assert await store.load_peers() == []
    await store._database.write(
        lambda connection: connection.execute(text("DROP TRIGGER full_disk ON events"))
    )
    assert await store.commit([script.peer("a"), script.run()]) == [1, 2]
    await store.close()


def _fill_the_disk(connection: Connection) -> None:
    connection.execute(
        text(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
        )
    )
    connection.execute(text("CREATE TRIGGER full_disk BEFORE INSERT ON events EXECUTE FUNCTION fail()"))


async def test_a_server_that_stops_and_comes_back(
    postgres_server: Any, postgres_url: str, script: Any
) -> None:
    store = await SqlStore.open(postgres_url)
    await store.commit([script.peer("a"), script.run()])
    postgres_server.stop()
    try:
        for attempt in (store.commit([script.round(1)]), store.commit([script.round(1)]), store.runs()):
            with pytest.raises(StorageError) as caught:
                await attempt
            assert caught.value.id == "store.unavailable"
            assert postgres_server.password not in str(caught.value)
    finally:
        postgres_server.start()
    assert await store.commit([script.round(1)]) == [3]  # at once, by the same store
    assert [run.run_id for run in await store.load_runs()] == ["r1"]
    await store.close()


async def test_a_server_that_is_not_there(postgres_url: str) -> None:
    head, _, database = postgres_url.rpartition("/")
    with pytest.raises(StorageError) as caught:
        await SqlStore.open(f"{head.rpartition(':')[0]}:1/{database}")
    assert caught.value.id == "store.unavailable"


async def test_a_defect_is_not_dressed_up(store: Store, script: Any) -> None:
    """A column that does not exist is a bug, not weather: nobody is to try again."""
    with pytest.raises(Exception, match="no_such_column") as caught:
        await store.commit([script.peer("a", no_such_column=1)])
    assert not isinstance(caught.value, StorageError)
    with pytest.raises(KeyError):
        await store.commit([script.row("x", "no such entity", {"id": 1}, "")])
    assert await store.commit([script.peer("a")]) == [1]
