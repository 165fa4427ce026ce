"""A whole federation whose coordinator loses a version while peers train from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coordinator.store import RunRow
from muster.spec.model import RunSpec
from simulator.local import LocalFederation, start_local

TASK = """
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


calls = 0  # in this process, of which the first is the trial


class Gated(muster.Task):
    def model(self):
        return nn.Linear(4, 2)

    def train_data(self, site):
        return TensorDataset(torch.ones(8, 4), torch.zeros(8, dtype=torch.long))

    def fit(self, model, context):
        global calls
        calls += 1
        while calls > 1 and not Path(context.site.data["gate"]).exists():
            time.sleep(0.01)
"""


async def _until(federation: LocalFederation, run_id: str, kind: str) -> Any:
    store, after = federation._store, 0
    while True:
        for event in await store.events(after=after, run_id=run_id):
            after = event.sequence
            if event.kind == kind:
                return event
        await store.wait_for_events(after)


async def _run(federation: LocalFederation, gate: Path, *, flips: bool) -> RunRow:
    spec = {
        "task": "gated_task:Gated",
        "rounds": 2,
        "aggregation": {"rule": "mean"},
        "evaluate": {"every": 0},
    }
    gate.unlink(missing_ok=True)
    run_id = await federation.submit(RunSpec.model_validate(spec))
    await _until(federation, run_id, "assignment.training")
    if flips:  # an exponent bit of the last coordinate of the version that the peers hold
        model = await federation._store.model(run_id)
        assert model is not None
        path = federation._running.coordinator.blobs.path(model.digest)
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 0x40
        path.write_bytes(raw)
    gate.touch()
    await _until(federation, run_id, "run.finished")
    row = await federation._store.run(run_id)
    assert row is not None
    return row


async def test_a_flipped_bit_in_a_base_version_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "gated_task.py").write_text(TASK)
    gate = tmp_path / "gate"
    data = [{"gate": str(gate)}] * 2
    async with start_local(tmp_path, peers=2, allow=["*"], data=data, task_folders=[tmp_path]) as federation:
        right = await _run(federation, gate, flips=False)
        mended = await _run(federation, gate, flips=True)
    assert (mended.committed, mended.skipped, mended.model_digest) == (2, 0, right.model_digest)
