"""A folder has one process that writes to it, whatever else the two of them share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coordinator.server import RunningCoordinator
from muster.config.settings import CoordinatorConfig
from muster.errors import StateError
from muster.transport import MemoryTransport
from peer.store.store import PeerStore


def config(folder: Path, database: Path) -> CoordinatorConfig:
    settings: dict[str, Any] = {
        "address": "c:0",
        "data_dir": folder,
        "database_url": f"sqlite:///{database}/muster.db",
    }
    return CoordinatorConfig.model_validate(settings)


async def start(folder: Path, database: Path) -> RunningCoordinator:
    return await RunningCoordinator.start(config(folder, database), MemoryTransport())


async def test_a_second_coordinator_with_its_database_elsewhere_touches_nothing(tmp_path: Path) -> None:
    first = await start(tmp_path / "data", tmp_path / "data")
    orphan = tmp_path / "data" / "blobs" / "ab" / ("ab" + 62 * "0")  # what a start sweeps
    orphan.parent.mkdir()
    orphan.touch()
    with pytest.raises(StateError) as caught:
        await start(tmp_path / "data", tmp_path / "elsewhere")
    error = caught.value
    assert error.id == "store.in_use"
    assert str(tmp_path / "data") in error.message
    assert error.fields["pid"].isdigit()
    assert error.fields["pid"] in error.cause
    assert "data_dir" in error.fix
    assert orphan.exists()
    await first.stop()
    await (
        await start(tmp_path / "data", tmp_path / "elsewhere")
    ).stop()  # the refused one left no lock behind


@pytest.mark.parametrize("part", ["blobs", "spool"])
async def test_a_part_that_lies_elsewhere_has_a_lock_of_its_own(tmp_path: Path, part: str) -> None:
    shared = tmp_path / "large disk"
    shared.mkdir()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / part).symlink_to(shared)
    first = await start(tmp_path / "one", tmp_path / "one")
    with pytest.raises(StateError) as caught:
        await start(tmp_path / "two", tmp_path / "two")
    assert caught.value.message == f"the folder {tmp_path / 'two' / part} is in use"
    if sys.platform == "linux":
        assert caught.value.fields["pid"] == str(os.getpid())
    assert not [path for path in shared.iterdir() if path.is_file()]
    await first.stop()


HOLDS = """
import sys
from pathlib import Path
from peer.store.store import PeerStore
store = PeerStore(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_peers_folder_names_who_has_it_until_that_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StateError) as caught:
            PeerStore(tmp_path)
        assert caught.value.id == "peer.in_use"
        assert str(process.pid) in caught.value.cause
        assert "--name" in caught.value.fix
        process.send_signal(signal.SIGKILL)
        process.wait()
    PeerStore(tmp_path).close()
