"""Folders with odd names, and folders that cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.server import RunningCoordinator
from coordinator.store import SqlStore
from coordinator.store.database import parse_url
from muster.config.settings import CoordinatorConfig
from muster.errors import StorageError
from muster.files.disk import make_folder
from muster.transport import MemoryTransport
from peer.store.store import PeerStore

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@given(name=NAMES)
def test_the_default_url_means_the_file_in_the_data_folder(name: str) -> None:
    folder = Path("/srv") / name
    config = CoordinatorConfig(data_dir=folder)
    assert parse_url(config.database_url).database == str(folder / "muster.db")
    assert not parse_url(config.database_url).query


@pytest.mark.parametrize(
    "name", ["a b", "x#1", "q?a=1", "p%41q", "100%", "größe", "file:x?mode=ro", " .", "'\"\n"]
)
async def test_the_database_lies_in_the_data_folder_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "c"
    config = CoordinatorConfig(address="127.0.0.1:0", data_dir=folder)
    running = await RunningCoordinator.start(config, MemoryTransport())
    await running.stop()
    assert (folder / "muster.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    PeerStore(tmp_path / name / "p").close()
    assert (tmp_path / name / "p" / "peer.sqlite").is_file()


def test_a_url_that_somebody_wrote_is_taken_as_a_url() -> None:
    assert parse_url("sqlite:////srv/a%3Fb.db").database == "/srv/a?b.db"
    assert parse_url("sqlite:///a b%.db?timeout=3").database == "a b%.db"
    other = "postgresql://me:p%40ss@host/name?sslmode=require"
    parsed = parse_url(other)
    assert (parsed.password, parsed.database, dict(parsed.query)) == ("p@ss", "name", {"sslmode": "require"})


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("file", "file is a file, not a folder"),
        ("file/below/it", "file is a file, not a folder"),
        ("dangling/it", "dangling is a link that leads nowhere, not a folder"),
        ("x" * 300, "its name is too long"),
        ("/proc/muster", "/proc takes no folders"),
        ("a\0b", "null byte"),
    ],
)
async def test_a_folder_that_cannot_be_made_is_told_with_what_is_in_its_way(
    tmp_path: Path, name: str, cause: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    folder = tmp_path / name
    with pytest.raises(StorageError) as coordinator:
        await RunningCoordinator.start(CoordinatorConfig(data_dir=folder), MemoryTransport())
    with pytest.raises(StorageError) as peer:
        PeerStore(folder)
    for caught in (coordinator.value, peer.value):
        assert caught.id == "storage.no_folder"
        assert cause in caught.cause
        assert "--data-dir" in caught.fix
        assert len(caught.message) < 500


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (13, "this user may not make folders in"),
        (30, "is on a file system that is mounted read-only"),
        (28, "No space left on device"),
    ],
)
def test_what_the_system_refuses_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cause: str
) -> None:
    import os

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError) as caught:
        make_folder(tmp_path / "new", "peer.data_dir")
    assert cause in caught.value.cause


async def test_a_full_disk_is_told_as_one_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coordinator.store.sql.take_folder", full)
    monkeypatch.setattr("peer.store.store.FolderLock.take", full)
    with pytest.raises(StorageError) as coordinator:
        await SqlStore.open(f"sqlite:///{tmp_path}/c/muster.db")
    with pytest.raises(StorageError) as peer:
        PeerStore(tmp_path / "p")
    assert {coordinator.value.id, peer.value.id} == {"storage.disk_full"}
