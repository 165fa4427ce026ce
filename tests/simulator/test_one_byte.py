"""Just One Byte over real rounds: a byte a sample goes up, and what came up goes down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muster.spec.model import RunSpec
from muster.task.loading import load_task
from simulator.local import start_local

ROOT = Path(__file__).parents[2]
SAMPLES, ROUNDS, PEERS = 32, 8, 3


@pytest.mark.timeout(120)
async def test_a_model_is_trained_with_a_byte_a_sample(tmp_path: Path) -> None:
    spec = RunSpec.model_validate(
        {
            "task": "examples.digits:Digits",
            "rounds": ROUNDS,
            "seed": 1,
            "train": {"algorithm": "spsa", "lr": 0.2, "options": {"eps": 2e-3}},
            "aggregation": {"rule": "mean"},
            "compression": {"up": f"one-byte:{SAMPLES}", "down": "replay"},
            "round": {"peers_min": PEERS, "quorum": 1.0},
            "evaluate": {"every": ROUNDS},
        }
    )
    async with start_local(
        tmp_path, peers=PEERS, allow=["examples.digits:*"], task_folders=[ROOT]
    ) as federation:
        run = await federation.run_to_end(spec)
        assert run.state == "FINISHED", run.reason
        task = load_task("examples.digits:Digits", [ROOT])
        model = task.model()
        model.load_state_dict(
            {name: each.clone() for name, each in (await federation.model(run.run_id)).items()}
        )
    assert all(bool(torch.isfinite(each).all()) for each in model.parameters())
    assert run.metrics["loss"] < 2.25  # of ten classes, 2.31 at first
    manifests = ROUNDS * PEERS * 700  # an update tells what it is, which takes more than its 32 bytes
    assert run.bytes_up < manifests < run.bytes_up_dense / 20
    assert run.bytes_down < ROUNDS * PEERS * 1500  # the first version is drawn by each peer
