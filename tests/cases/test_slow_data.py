"""Loading that takes longer than a round: the round waits for it where it must, and it is never begun anew."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from coordinator.store import Store
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
        if what == "train" and site.data["gate"]:
            while not Path(site.data["gate"]).exists():
                time.sleep(0.02)
        return TensorDataset(torch.ones(20, 8), torch.zeros(20, dtype=torch.long))
"""
DEADLINE_SECONDS = 3.0  # which everything but the loading keeps
SPEC = {
    "task": "slow_task:Slow",
    "rounds": 2,
    "aggregation": {"rule": "mean"},
    "evaluate": {"on": ["coordinator", "peers"]},
    "round": {"peers_min": 2, "quorum": 1.0, "deadline_seconds": DEADLINE_SECONDS, "grace_seconds": 0},
}


async def past_the_deadline(store: Store, run_id: str) -> None:
    """Returns when the first round's own time is over. That peer-0 loads its data then is what the test is about."""
    seen = 0
    while True:
        round_ = await store.round(run_id, 1)
        states = {} if round_ is None else {each.peer_id: each.state for each in round_.assignments}
        if round_ is not None and states.get("peer-0") == "PREPARING" and states.get("peer-1") == "DELIVERED":
            assert round_.deadline_at is not None
            await asyncio.sleep(max(0.0, round_.deadline_at - time.time()) + 0.2)
            return
        seen = await store.wait_for_events(seen)


@pytest.mark.timeout(180)
async def test_loading_outlives_the_deadline_and_happens_once(tmp_path: Path) -> None:
    (tmp_path / "slow_task.py").write_text(TASK)
    gate = tmp_path / "gate"
    data = [{"gate": str(gate)}, {"gate": ""}]
    async with start_local(
        tmp_path, peers=2, allow=["slow_task:*"], data=data, task_folders=[tmp_path]
    ) as federation:
        run_id = await federation.submit(RunSpec.model_validate(SPEC))
        await past_the_deadline(federation._store, run_id)
        round_ = await federation.round(run_id, 1)
        assert (round_.state, [each.state for each in round_.assignments]) == (
            "OPEN",
            ["PREPARING", "DELIVERED"],
        )
        gate.touch()
        run = await federation.settled(run_id)
        assert (run.state, run.committed, run.skipped) == ("FINISHED", 2, 0), run.reason
        assert {"loss", "peers/loss"} <= run.metrics.keys()
    loads = sorted((tmp_path / "loads").read_text().split("\n")[:-1])
    assert loads == ["coordinator test", "peer-0 test", "peer-0 train", "peer-1 test", "peer-1 train"]
