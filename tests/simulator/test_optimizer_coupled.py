"""DGC and 1-bit Adam over real rounds of one step each, from peers that hold different digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muster.spec.model import RunSpec
from simulator.local import start_local

ROOT = Path(__file__).parents[2]


def spec(**tables: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "examples.digits:Digits",
            "rounds": 60,
            "seed": 1,
            "task_options": {"partition": "by-class", "classes": 5},
            "round": {"peers_min": 3, "quorum": 1.0},
            "evaluate": {"every": 60},
            **tables,
        }
    )


@pytest.mark.timeout(200)
async def test_dgc_and_one_bit_adam_learn_with_a_fraction_of_the_bytes(tmp_path: Path) -> None:
    sgd = {"steps": 2, "lr": 0.1, "batch_size": 64}
    dgc = spec(train=sgd, compression={"up": "topk:0.05", "feedback": "dgc:0.9", "warm_up_rounds": 10})
    adam = spec(
        train={"steps": 2, "lr": 1.0, "batch_size": 64},
        compression={"up": "sign", "feedback": "momentum:0.9", "warm_up_rounds": 12},
        server={"optimizer": "onebit-adam", "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-8},
    )
    async with start_local(tmp_path, peers=3, allow=["examples.digits:*"], task_folders=[ROOT]) as federation:
        sparse, one_bit = await federation.run_to_end(dgc), await federation.run_to_end(adam)
    for run in (sparse, one_bit):
        assert run.state == "FINISHED", run.reason
        assert run.metrics["accuracy"] > 0.85
        assert run.bytes_up < run.bytes_up_dense / 3
