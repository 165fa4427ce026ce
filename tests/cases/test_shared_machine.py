"""Peers on one machine: they share its cores, and simulated ones their worker processes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog

from coordinator.store import RunRow
from muster.runtime import cores
from muster.spec.model import RunSpec
from simulator.local import LocalFederation, start_local

TASK = """
import os

import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Shared(muster.Task):
    def model(self):
        return nn.Linear(3, 2)

    def train_data(self, site):
        generator = torch.Generator().manual_seed(site.data["index"])
        return TensorDataset(torch.randn(9, 3, generator=generator), torch.arange(9) % 2)

    def evaluate(self, model, site):
        return {"threads": torch.get_num_threads(), "pid": os.getpid()}
"""
SPEC: dict[str, Any] = {
    "task": "shared_task:Shared",
    "rounds": 2,
    "round": {"quorum": 1.0},
    "aggregation": {"rule": "mean"},
    "train": {"lr": 0.1, "momentum": 0.9},
    "compression": {"up": "int8", "feedback": "ef21"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shared_task.py").write_text(TASK)
    return tmp_path


def local(folder: Path, **settings: Any) -> Any:
    return start_local(folder, allow=["shared_task:*"], task_folders=[folder], **settings)


async def trained(federation: LocalFederation, peers: int, **tables: Any) -> RunRow:
    spec = {**SPEC, "round": {"quorum": 1.0, "peers_min": peers}, **tables}
    run = await federation.run_to_end(RunSpec.model_validate(spec))
    assert run.state == "FINISHED", run.reason
    return run


@pytest.mark.timeout(120)
async def test_two_peers_and_the_coordinator_take_half_of_the_cores_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "runtime"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "usable_cores", lambda: 6)
    async with local(folder, peers=2) as federation:
        run = await trained(federation, 2, rounds=1, evaluate={"on": ["coordinator", "peers"]})
    assert (run.metrics["threads"], run.metrics["peers/threads"]) == (3, 3)


def peers_workers() -> int:
    found = 0
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # of those that have just ended
            found += "peer.work.jobs" in child.cmdline()
    return found


@pytest.mark.timeout(120)
async def test_peers_that_share_a_worker_train_the_same_bytes(folder: Path) -> None:
    digests: list[str] = []
    for workers in (1, 3):
        own = folder / str(workers)
        own.mkdir()
        (own / "shared_task.py").write_text(TASK)
        async with local(own, peers=3, workers=workers) as federation:
            run = await trained(federation, 3, evaluate={"every": 0})
            assert peers_workers() == workers
        digests.append(run.model_digest)
    assert len(set(digests)) == 1


@pytest.mark.timeout(120)
async def test_a_federation_is_quiet_unless_asked(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with local(folder, peers=1):
        structlog.get_logger().error("peer.unheard")
    assert capfd.readouterr() == ("", "")
    async with local(folder, peers=1, log_level="info"):
        structlog.get_logger().info("peer.heard")
    assert "peer.heard" in capfd.readouterr().out
    assert not structlog.is_configured()
