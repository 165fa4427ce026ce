"""SCAFFOLD as a package of somebody else's: a group up and down, and state that outlives a peer's process."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muster.spec.model import RunSpec
from simulator.processes import ProcessFederation
from tests.plugins.quadratics import SOURCE

PEERS, ROUNDS = 4, 40


def _spec(algorithm: str, **options: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "quadratics_task:Quadratics",
            "rounds": ROUNDS,
            "task_options": {"peers": PEERS},
            "train": {"algorithm": algorithm, "lr": 0.02, "steps": 10, "options": options},
            "aggregation": {"rule": "mean", "weights": "uniform"},
            "round": {"quorum": 1.0, "peers_min": PEERS},
            "evaluate": {"every": ROUNDS},
        }
    )


async def test_scaffold_finds_the_common_optimum_though_a_peer_is_killed(
    tmp_path: Path, installed_methods: Mapping[str, str]
) -> None:
    (tmp_path / "quadratics_task.py").write_text(SOURCE)
    async with ProcessFederation(tmp_path / "federation", task_folders=[tmp_path]) as federation:
        await federation.start_coordinator(env=installed_methods)
        for index in range(PEERS):
            federation.start_peer(f"peer-{index}", data={"index": index}, env=installed_methods)
        run_id = await federation.submit(_spec("scaffold", peers=PEERS))
        await federation.progressed(run_id, 10)
        await federation.stop("peer-0", signal.SIGKILL)
        federation.start_peer("peer-0", data={"index": 0}, env=installed_methods)
        ended = [run async for run in federation.watch(run_id)][-1]
        assert (ended.state, ended.rounds_committed) == ("FINISHED", ROUNDS), ended
    # Averaged without control variates, the same quadratics stay .157 away from their optimum for ever.
    assert ended.metrics["error"] < 1e-10
