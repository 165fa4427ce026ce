"""What the coordinator's worker hands to a task's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator import jobs
from muster.initial import draw_version
from muster.seeds import initial_seed
from muster.tasks import load_task

TASK = """
import torch
from torch import nn

import muster


class Projected(muster.Task):
    drawn = 0

    def model(self):
        Projected.drawn += 1
        model = nn.Linear(4, 1)
        model.register_buffer("projection", torch.randn(4, 4), persistent=False)
        return model

    def train_data(self, site):
        raise NotImplementedError

    def evaluate(self, model, site):
        model.projection += self.options.get("spoils", 0)  # what an evaluation leaves behind is nobody's
        return {"drawn": self.drawn, "seed": site.seed, "projected": float(model.projection.sum())}
"""


def done(job: str, args: dict[str, Any]) -> dict[str, Any]:
    return jobs.JOBS[job](args, lambda _: None)


@pytest.fixture
def args(tmp_path: Path) -> dict[str, Any]:
    """For a run with seed 3."""
    (tmp_path / "projected_task.py").write_text(TASK)
    return {
        "task": "projected_task:Projected",
        "task_folders": [str(tmp_path)],
        "named": True,
        "options": {},
        "seed": 3,
        "path": str(tmp_path / "version"),
    }


def test_the_first_version_is_the_one_that_peers_draw(args: dict[str, Any], tmp_path: Path) -> None:
    task = load_task(args["task"], [tmp_path], {})
    assert (
        done("init_model", args)["digest"]
        == draw_version(task, initial_seed(3), tmp_path / "other").info.digest
    )


async def test_a_task_is_told_the_seed_of_the_run_as_on_the_peers(stage: Any, args: dict[str, Any]) -> None:
    peer = await stage.peer("peer")
    alone = {"peers_min": 1, "quorum": 1.0}
    run_id = await stage.submit(task=args["task"], seed=3, evaluate={"every": 1}, round=alone)
    offer = await peer.offer()
    await peer.deliver(offer, peer.write(offer, torch.ones(5)))
    assert (await stage.ended(run_id)).metrics["seed"] == 3


def test_what_no_version_holds_is_the_same_for_every_version(args: dict[str, Any]) -> None:
    args["options"] = {"spoils": 1}
    done("init_model", args)
    first, second = (done("evaluate", args)["metrics"] for _ in range(2))
    assert first == second
    assert first["drawn"] == second["drawn"]  # a model that takes its time is not drawn for each version
