"""PowerSGD over real rounds, with a factor of each sender's own and with one that all share."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.spec.model import RunSpec
from simulator.local import start_local

ROOT = Path(__file__).parents[2]
ROUNDS = 20


def spec(up: str) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "examples.digits:Digits",
            "rounds": ROUNDS,
            "seed": 1,
            "round": {"peers_min": 4, "quorum": 1.0},
            "train": {"steps": 10, "lr": 0.3, "batch_size": 32},
            "compression": {"up": up, "feedback": "ef14"},
            "evaluate": {"every": ROUNDS},
        }
    )


@pytest.mark.timeout(200)
async def test_a_common_factor_goes_down_so_that_only_one_side_goes_up(tmp_path: Path) -> None:
    async with start_local(
        tmp_path, peers=4, workers=1, allow=["examples.digits:*"], task_folders=[ROOT]
    ) as federation:
        own = await federation.run_to_end(spec("powersgd:2"))
        common = await federation.run_to_end(spec("powersgd:4:common"))
    for run in (own, common):
        assert run.state == "FINISHED", run.reason
        assert run.metrics["accuracy"] > 0.9
    # In two rounds one side each of twice the rank: as many numbers as both sides, but for what a header differs in.
    assert common.bytes_up == pytest.approx(own.bytes_up, rel=0.01)
    # The layers are [64, 64] and [10, 64]. From the second round on the other side goes down, lefts first.
    lefts, rights = 4 * (64 + 10), 4 * (64 + 64)
    factors = ROUNDS // 2 * lefts + (ROUNDS // 2 - 1) * rights
    assert common.bytes_down - own.bytes_down == 4 * 4 * factors
