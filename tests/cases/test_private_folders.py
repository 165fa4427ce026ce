"""Secrets, stores and data are their user's alone, whatever the umask; a folder for everybody stays one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from coordinator.server import RunningCoordinator
from coordinator.store import SqlStore
from muster.config.settings import CoordinatorConfig
from muster.files.blobs import FolderBlobStore
from muster.files.folders import private_folder
from muster.files.hashedfile import HashedFile
from muster.transport import MemoryTransport
from muster.worker.logfile import LogFile
from peer.store.models import ModelCache
from peer.store.store import PeerStore


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(folder: Path) -> list[str]:
    return [str(path) for path in (folder, *folder.rglob("*")) if mode(path) & 0o077]


async def test_a_coordinators_folder(tmp_path: Path) -> None:
    folder = tmp_path / "coordinator"
    config = CoordinatorConfig.model_validate({"address": "c:0", "data_dir": folder})
    running = await RunningCoordinator.start(config, MemoryTransport())
    held = {path.name for path in folder.rglob("*")}
    assert {"muster.db", "muster.db-wal", "muster.db-shm", "blobs", "spool", "coordinator.lock"} <= held
    assert open_to_others(folder) == []
    await running.stop()


async def test_a_peers_folder(tmp_path: Path) -> None:
    folder = tmp_path / "peer"
    with PeerStore(folder) as store:
        store.secret("ward")
        await ModelCache(folder, fetch=None).open([])  # type: ignore[arg-type]  # nothing is fetched
        LogFile(folder / "logs" / "worker.log").write(b"x")
        HashedFile(store.new_stem()).close()
        assert open_to_others(folder) == []


async def test_what_an_older_version_left_open_is_narrowed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    for name in ("muster.db", "muster.db-wal"):
        (folder / name).touch(mode=0o644)
    with structlog.testing.capture_logs() as logs:
        private_folder(folder)
    assert [entry["event"] for entry in logs] == ["folder.narrowed"]
    await (await SqlStore.open(f"sqlite:///{folder}/muster.db")).close()
    assert open_to_others(folder) == []


@pytest.mark.parametrize("shared", [0o1777, 0o2775])
def test_a_folder_that_is_shared_on_purpose_is_left_and_told(tmp_path: Path, shared: int) -> None:
    folder = tmp_path / "everybody's"
    folder.mkdir()
    folder.chmod(shared)
    with structlog.testing.capture_logs() as logs:
        private_folder(folder)
    assert mode(folder) == shared
    (entry,) = logs
    assert entry["log_level"] == "warning"
    assert str(folder) in entry["reason"]
    assert "data_dir" in entry["reason"]
    FolderBlobStore(folder / "blobs")
    with PeerStore(folder) as store:
        store.secret("ward")
    assert open_to_others(folder)[1:] == []


def test_a_file_in_the_folders_place_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.touch(mode=0o644)
    with pytest.raises(FileExistsError):
        private_folder(path)
    assert mode(path) == 0o644
