"""Peers draw the first version themselves: over real processes, killed ones too."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from muster.spec.model import RunSpec
from simulator.processes import ProcessFederation

TASK = """
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Blobs(muster.Task):
    def model(self):
        fatal = Path(os.environ.get("FATAL_ONCE", "/nowhere"))
        if fatal.exists():
            fatal.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        model = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 2))
        with torch.no_grad():  # from each generator that the run seeds
            model[0].bias[0] = random.random()
            model[0].bias[1] = np.random.random()
            if self.options.get("elsewhere"):
                model[0].bias[2] = os.getpid()
        return model

    def train_data(self, site):
        generator = torch.Generator().manual_seed(site.data["index"])
        targets = torch.arange(64) % 2
        return TensorDataset(torch.randn(64, 20, generator=generator) + targets[:, None], targets)
"""
MODEL_BYTES = 4 * (20 * 256 + 256 + 256 * 2 + 2)


def spec(**tables: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "drawn_task:Blobs",
            "rounds": 3,
            "seed": 3,
            "train": {"lr": 0.1, "steps": 2},
            "compression": {"up": "int8", "down": "topk:0.01+int8"},
            "evaluate": {"every": 0},
            "round": {"peers_min": 3, "quorum": 1.0, "attempts_max": 5},
            **tables,
        }
    )


@pytest.fixture
async def federation(tmp_path: Path) -> AsyncIterator[ProcessFederation]:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "drawn_task.py").write_text(TASK)
    async with ProcessFederation(tmp_path, task_folders=[tasks]) as made:
        await made.start_coordinator()
        for index in range(3):
            start(made, index)
        yield made


def start(federation: ProcessFederation, index: int, **env: str) -> None:
    federation.start_peer(f"peer-{index}", data={"index": index}, env=env)


def told(federation: ProcessFederation, index: int, event: str, run_id: str) -> list[dict[str, Any]]:
    """The peer's log lines of this event and run."""
    found = [
        json.loads(line) for line in federation.log(f"peer-{index}").splitlines() if line.startswith("{")
    ]
    return [each for each in found if each["event"] == event and each.get("run_id") == run_id]


@pytest.mark.timeout(180)
async def test_a_first_version_that_comes_out_the_same_is_not_fetched_and_one_that_does_not_is(
    federation: ProcessFederation,
) -> None:
    run = await federation.run_to_end(spec())
    assert run.state == "FINISHED", run.reason
    first, *later = await federation.rounds(run.run_id)
    assert first.bytes_down == 0
    assert all(0 < each.bytes_down < MODEL_BYTES / 3 for each in later)  # deltas
    assert [len(told(federation, index, "model.drawn", run.run_id)) for index in range(3)] == [1, 1, 1]

    # Two of three each round: whoever comes first when there is a step already draws what the step starts from.
    late = await federation.run_to_end(spec(rounds=5, sampling={"fraction": 0.6}))
    assert late.state == "FINISHED", late.reason
    rounds = await federation.rounds(late.run_id)
    assert rounds[0].bytes_down == 0
    assert 0 < late.bytes_down < MODEL_BYTES / 3
    assert [len(told(federation, index, "model.drawn", late.run_id)) for index in range(3)] == [1, 1, 1]

    other = await federation.run_to_end(spec(task_options={"elsewhere": True}))
    assert other.state == "FINISHED", other.reason
    first, *later = await federation.rounds(other.run_id)
    assert 3 * MODEL_BYTES < first.bytes_down < 3 * MODEL_BYTES + 3000
    assert all(0 < each.bytes_down < MODEL_BYTES / 3 for each in later)
    for index in range(3):
        (line,) = told(federation, index, "model.not_drawn", other.run_id)
        assert "it came out otherwise" in line["reason"]


@pytest.mark.timeout(180)
async def test_whoever_is_killed_while_drawing_the_run_goes_on(
    federation: ProcessFederation, tmp_path: Path
) -> None:
    reference = await federation.run_to_end(spec())
    fatal = tmp_path / "fatal"
    fatal.touch()
    for index in (0, 1):
        await federation.stop(f"peer-{index}")
    start(federation, 0, FATAL_ONCE=str(fatal))
    start(federation, 1, MUSTER_FAILPOINT="peer.drawn:kill")
    run_id = await federation.submit(spec())
    assert await federation.exited("peer-1") == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "peer-1" / "models").iterdir()}
    start(federation, 1)
    ended = [run async for run in federation.watch(run_id)][-1]
    assert ended.state == "FINISHED", ended.reason
    assert ended.model_digest == reference.model_digest
    assert left == set()
    assert not fatal.exists()
    (line,) = told(federation, 0, "model.not_drawn", run_id)
    assert "SIGKILL" in line["reason"]
    assert told(federation, 1, "model.drawn", run_id)
    first = (await federation.rounds(run_id))[0]
    assert MODEL_BYTES < first.bytes_down < MODEL_BYTES + 1000  # what peer-0 fetched, and nobody else
