"""Workers of another user: the kernel keeps a task out of its daemon's store, and nothing else changes."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine.state import RunSubmitted
from coordinator.server import RunningCoordinator
from coordinator.store import RunRow
from muster.config.settings import CoordinatorConfig, PeerConfig
from muster.errors import ConfigError, TaskError
from muster.spec.model import RunSpec
from muster.transport import MemoryTransport
from muster.worker.handover import Handover
from muster.worker.user import WorkerUser, check_reach, find_user
from peer.daemon import run_peer
from peer.store.store import PeerStore

SETTING = "peer.worker_user"
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may start processes as another user")

TASK = """
import os

import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Curious(muster.Task):
    def model(self):
        return nn.Linear(8, 2000)

    def train_data(self, site):
        generator = torch.Generator().manual_seed(site.data["index"])
        return TensorDataset(torch.randn(64, 8, generator=generator), torch.zeros(64, dtype=torch.long))

    def evaluate(self, model, site):
        return {"opened": sum(map(opened, site.options["secrets"])), "uid": os.getuid(), "groups": len(os.getgroups())}


def opened(path):
    try:
        open(path, "rb").close()
    except PermissionError:
        return 0
    return 1
"""


@pytest.fixture
def nobody() -> WorkerUser:
    return find_user("nobody", SETTING)


@pytest.fixture
def folder(nobody: WorkerUser) -> Iterator[Path]:
    """Where another user gets to, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o711)
        yield path


@pytest.fixture
def python_of_nobody(folder: Path, nobody: WorkerUser, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another user can run: this one, or where it lies in a home that is closed to others, a copy."""
    try:
        check_reach(nobody, (), SETTING)
    except ConfigError:
        copy, version = folder / "python", f"python{sys.version_info.major}.{sys.version_info.minor}"
        unneeded = shutil.ignore_patterns(
            "site-packages", "test", "__pycache__", "config-*", "idlelib", "ensurepip"
        )
        shutil.copytree(Path(sys.base_prefix) / "lib" / version, copy / "lib" / version, ignore=unneeded)
        (copy / "bin").mkdir()
        shutil.copy(os.path.realpath(sys.executable), copy / "bin" / version)
        monkeypatch.setattr(sys, "executable", str(copy / "bin" / version))
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join(each for each in sys.path if "site-packages" in each)
        )
    try:
        check_reach(nobody, (), SETTING)
    except ConfigError as error:
        pytest.skip(f"another user can run neither this Python nor a copy of it: {error.cause}")


def shell(user: WorkerUser, script: str, *args: str | Path) -> int:
    command = ["/bin/sh", "-c", script, "sh", *map(str, args)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False, **user.start_options()).returncode


# -- what is refused before anything starts ----------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["no-such-user", 3_999_999_999, "3999999999", -2, ""])
def test_a_user_that_is_not_there(said: str | int) -> None:
    with pytest.raises(ConfigError, match=SETTING) as refused:
        find_user(said, SETTING)
    assert refused.value.id == "worker.user_unknown"
    assert "useradd" in refused.value.fix


@pytest.mark.parametrize("said", ["root", "0", 0])
def test_root_is_no_other_user(said: str | int) -> None:
    with pytest.raises(ConfigError) as refused:
        find_user(said, SETTING)
    assert refused.value.id == "worker.user_is_root"


def test_a_daemon_that_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="only root") as refused:
        find_user("nobody", SETTING)
    assert "uid 1000" in refused.value.cause


@only_root
def test_a_name_and_a_uid_are_one_user(nobody: WorkerUser) -> None:
    assert find_user(str(pwd.getpwnam("nobody").pw_uid), SETTING) == nobody
    found = nobody.environment({"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0", "PATH": "/bin"})
    assert found == {"HOME": nobody.home, "USER": "nobody", "LOGNAME": "nobody", "PATH": "/bin"}


@only_root
def test_a_python_that_the_user_cannot_run(
    folder: Path, nobody: WorkerUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    shutil.copy("/bin/sh", closed / "python")
    monkeypatch.setattr(sys, "executable", str(closed / "python"))
    with pytest.raises(ConfigError) as refused:
        check_reach(nobody, (), SETTING)
    assert refused.value.id == "worker.user_refused"
    assert f"{closed} is closed to others" in refused.value.cause


@only_root
@pytest.mark.usefixtures("python_of_nobody")
def test_a_task_folder_that_the_user_cannot_read(folder: Path, nobody: WorkerUser) -> None:
    tasks = folder / "closed" / "tasks"
    tasks.mkdir(parents=True)
    check_reach(nobody, [tasks], SETTING)
    for shut in (tasks, tasks.parent):
        shut.chmod(0o700)
        with pytest.raises(ConfigError, match="cannot read") as refused:
            check_reach(nobody, [tasks], SETTING)
        assert str(tasks) in refused.value.message
        assert refused.value.cause == f"{shut} is closed to it"


# -- what goes to and fro ----------------------------------------------------------------------------------------------


@only_root
async def test_the_store_stays_closed_and_what_is_lent_is_read(folder: Path, nobody: WorkerUser) -> None:
    with PeerStore(folder) as store:
        store.secret("ward")
        base, update = folder / "files" / "base", folder / "files" / "x.update"
        base.write_bytes(b"model")
        handover = Handover(folder, nobody)
        handover.open()
        with handover.exchange() as exchange:
            lent, place = exchange.lend(base), exchange.place(update)
            for path in (*folder.glob("peer.*"), base):
                assert shell(nobody, 'cat "$1"', path) != 0, path
            assert shell(nobody, 'grep -q model "$1"', lent) == 0
            for script in ('echo x > "$1"', 'rm -f "$1"; test ! -e "$1"', 'mv "$1" "$1.other"'):
                assert shell(nobody, script, lent) != 0, script
            assert shell(nobody, 'ls "$1"', folder) != 0
            assert shell(nobody, 'echo update > "$1"', place) == 0
            await exchange.take(update)
        assert update.read_text() == "update\n"
        assert (update.stat().st_uid, update.stat().st_mode & 0o777) == (0, 0o600)


@only_root
@pytest.mark.parametrize(
    "trick", ['ln -s "$1" "$2"', 'mkdir "$2"', 'mkfifo "$2"', ': > "$2"; ln "$2" "$2.twin"']
)
async def test_a_link_in_the_place_of_a_file_is_not_followed(
    folder: Path, nobody: WorkerUser, trick: str
) -> None:
    secret, update = folder / "peer.sqlite", folder / "x.update"
    secret.write_text("secret")
    secret.chmod(0o600)
    handover = Handover(folder, nobody)
    handover.open()
    with handover.exchange() as exchange:
        assert shell(nobody, trick, secret, exchange.place(update)) == 0
        with pytest.raises(TaskError) as refused:
            await exchange.take(update)
    assert refused.value.id == "worker.bad_file"
    assert not os.path.lexists(update)
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("secret", 0o600)


# -- a run -------------------------------------------------------------------------------------------------------------


@only_root
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("python_of_nobody")
async def test_a_run_is_the_same_and_its_task_opens_no_store(folder: Path, nobody: WorkerUser) -> None:
    (folder / "tasks").mkdir()
    (folder / "tasks" / "curious_task.py").write_text(TASK)
    own = await _run(folder, "own", None)
    other = await _run(folder, "other", nobody.name)
    assert other["digest"] == own["digest"]
    assert (own["metrics"]["opened"], own["metrics"]["peers/opened"]) == (
        2,
        2,
    )  # else the task cannot see at all
    for key in ("opened", "peers/opened", "groups", "peers/groups"):
        assert other["metrics"][key] == 0, key
    assert other["metrics"]["uid"] == other["metrics"]["peers/uid"] == nobody.uid


async def _ended(running: RunningCoordinator, spec: RunSpec) -> RunRow:
    store = running.coordinator.store
    event = RunSubmitted(run_id="run", spec=spec, spec_toml="", request_id="run")
    await running.coordinator.submissions.submit(event)
    seen = 0
    while True:
        row = await store.run("run")
        if row is not None and row.state in ("FINISHED", "FAILED", "PAUSED"):
            return row
        seen = await store.wait_for_events(seen)


async def _run(folder: Path, name: str, worker_user: str | None) -> dict[str, Any]:
    data_dir = folder / name
    data_dir.mkdir()
    secrets = [str(data_dir / "ward-0" / "peer.sqlite"), str(data_dir / "coordinator" / "muster.db")]
    transport = MemoryTransport()
    shared = {"task_folders": (folder / "tasks",), "allow": ("*",), "worker_user": worker_user}
    config = CoordinatorConfig.model_validate(
        {"address": "127.0.0.1:0", "data_dir": data_dir / "coordinator", **shared}
    )
    running = await RunningCoordinator.start(config, transport)
    peers: list[asyncio.Task[None]] = []
    for index in range(2):
        settings = {
            "name": f"ward-{index}",
            "coordinator": running.address,
            "policy": data_dir / "none",
            **shared,
        }
        settings |= {
            "data_dir": data_dir / f"ward-{index}",
            "device": "cpu",
            "data": {"index": index},
            "threads": 1,
        }
        peers.append(asyncio.create_task(run_peer(PeerConfig.model_validate(settings), transport)))
    spec = {
        "task": "curious_task:Curious",
        "task_options": {"secrets": secrets},
        "rounds": 3,
        "round": {"peers_min": 2},
        "aggregation": {"rule": "mean"},
        "compression": {"up": "topk:0.25", "feedback": "ef21", "down": "topk:0.1"},
        "evaluate": {"on": ["coordinator", "peers"]},
    }
    try:
        run = await _ended(running, RunSpec.model_validate(spec))
        assert run.state == "FINISHED", run.reason
        model = await running.coordinator.store.model(run.run_id)
        assert model is not None
        return {"digest": model.digest, "metrics": run.metrics}
    finally:
        for peer in peers:
            peer.cancel()
        await asyncio.gather(*peers, return_exceptions=True)
        await running.stop()
