"""Loading that takes longer than a round: the round waits for it where it must, and it is never begun anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.spec.model import RunSpec
from simulator.local import start_local

TASK = """
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Slow(muster.Task):
    def model(self):
        return nn.Linear(8, 2)

    def train_data(self, site):
        return self.loaded(site, "train")

    def test_data(self, site):
        return self.loaded(site, "test")

    def loaded(self, site, what):
        with open(Path(__file__).with_name("loads"), "a") as file:
            file.write(f"{site.name} {what}\\n")
        if what == "train":
            time.sleep(site.data["seconds"])
        return TensorDataset(torch.ones(20, 8), torch.zeros(20, dtype=torch.long))
"""
SPEC = {
    "task": "slow_task:Slow",
    "rounds": 2,
    "aggregation": {"rule": "mean"},
    "evaluate": {"on": ["coordinator", "peers"]},
    "round": {"peers_min": 2, "quorum": 1.0, "deadline_seconds": 6, "grace_seconds": 0},
}


@pytest.mark.timeout(180)
async def test_loading_outlives_the_deadline_and_happens_once(tmp_path: Path) -> None:
    (tmp_path / "slow_task.py").write_text(TASK)
    data = [{"seconds": 6.5}, {"seconds": 0}]
    async with start_local(
        tmp_path, peers=2, allow=["slow_task:*"], data=data, task_folders=[tmp_path]
    ) as federation:
        run = await federation.run_to_end(RunSpec.model_validate(SPEC))
        assert (run.state, run.committed, run.skipped) == ("FINISHED", 2, 0), run.reason
        assert {"loss", "peers/loss"} <= run.metrics.keys()
    loads = sorted((tmp_path / "loads").read_text().split("\n")[:-1])
    assert loads == ["coordinator test", "peer-0 test", "peer-0 train", "peer-1 test", "peer-1 train"]
