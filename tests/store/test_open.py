import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.store import SqlStore
from coordinator.store.lock import LOCK_NAME
from muster.errors import ConfigError, NotFoundError, StateError, StorageError

HOLDS = """
import asyncio, sys
from coordinator.store import SqlStore

async def main():
    await SqlStore.open(sys.argv[1])
    print("open", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "muster.db"


def _url(path: Path) -> str:
    return f"sqlite:///{path}"


async def test_a_second_opener_in_this_process_is_refused(path: Path, script: Any) -> None:
    first = await SqlStore.open(_url(path))
    try:
        with pytest.raises(StateError) as caught:
            await SqlStore.open(_url(path.with_name("other.db")))  # the folder is what is taken
        assert caught.value.id == "store.in_use"
        assert caught.value.fields["pid"] == str(os.getpid())
        assert caught.value.fix
        assert await first.commit([script.peer("a")]) == [1]
    finally:
        await first.close()
    again = await SqlStore.open(_url(path))
    assert len(await again.peers()) == 1
    await again.close()


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the store open."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, _url(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


async def test_a_second_process_is_refused_until_the_first_is_dead(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(StateError) as caught:
        await SqlStore.open(_url(path))
    assert caught.value.id == "store.in_use"
    assert str(holder.pid) in str(caught.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    store = await SqlStore.open(_url(path))
    await store.close()
    assert (path.parent / LOCK_NAME).exists()


async def test_sqlite_is_set_up_to_lose_nothing(path: Path, script: Any) -> None:
    store = await SqlStore.open(_url(path))
    names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")

    def settings(connection: Any) -> list[Any]:
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]

    full = 2
    assert await store._database.read(settings) == ["wal", full, 1, 5000]
    assert await store._database.write(settings) == ["wal", full, 1, 5000]
    await store.close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700  # the hashes of secrets lie there


async def test_without_create_a_missing_database_is_told(path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        await SqlStore.open(_url(path), create=False)
    assert caught.value.id == "store.not_found"
    assert not path.parent.exists()


async def test_without_create_an_empty_server_is_told(postgres_url: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        await SqlStore.open(postgres_url, create=False)
    assert caught.value.id == "store.not_found"
    assert postgres_url.rpartition("@")[2] in str(caught.value)
    assert postgres_url.split(":")[2].split("@", maxsplit=1)[0] not in str(caught.value)  # the password


async def test_without_create_an_old_database_opens(database_url: str, script: Any) -> None:
    first = await SqlStore.open(database_url)
    await first.commit([script.peer("a")])
    await first.close()
    again = await SqlStore.open(database_url, create=False)
    assert len(await again.peers()) == 1
    await again.close()


@pytest.mark.parametrize(
    "url",
    ["", "no url", "mysql://localhost/muster", "sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite://"],
)
async def test_a_url_that_cannot_be_used_is_told(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await SqlStore.open(url)
    assert caught.value.id == "store.url"
    assert "postgresql://" in caught.value.fix


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+aiosqlite", "sqlite+pysqlite"])
async def test_the_driver_is_ours_to_choose(driver: str, path: Path) -> None:
    store = await SqlStore.open(f"{driver}:///{path}")
    assert store.where == f"sqlite+pysqlite:///{path}"
    await store.close()


async def test_a_file_that_is_no_database_is_told(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"a file of another kind, long enough to be read as one page\n" * 100)
    with pytest.raises(StorageError) as caught:
        await SqlStore.open(_url(path))
    assert caught.value.id == "store.damaged"


async def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError) as caught:
        await SqlStore.open(_url(tmp_path / "file" / "muster.db"))
    assert caught.value.id == "store.unavailable"


async def test_an_open_that_fails_gives_the_folder_back(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"x" * 5000)
    with pytest.raises(StorageError):
        await SqlStore.open(_url(path))
    path.unlink()
    store = await SqlStore.open(_url(path))
    await store.close()


async def test_a_writer_that_does_not_end_is_told(
    path: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.store.database.BUSY_TIMEOUT_SECONDS", 0.05)
    store = await SqlStore.open(_url(path))
    shell = sqlite3.connect(path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="does not answer") as caught:
        await store.commit([script.peer("a")])
    assert caught.value.id == "store.unavailable"
    assert "locked" in caught.value.cause
    assert await store.peers() == []  # reading goes on
    shell.execute("ROLLBACK")
    shell.close()
    assert await store.commit([script.peer("a")]) == [1]
    await store.close()
