"""What the coordinator's worker hands to a task's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.workers import jobs, task_jobs
from muster.errors import MusterError, TaskError
from muster.model.initial import draw_version
from muster.seeds import initial_seed
from muster.task.loading import load_task

TASK = """
import torch
from torch import nn

import muster


class Frozen(muster.Task):
    def model(self):
        return nn.Linear(4, 1).requires_grad_(False)

    def train_data(self, site):
        raise NotImplementedError


class Deaf(Frozen):
    def model(self):
        model = nn.Linear(4, 1)
        model.register_state_dict_post_hook(
            lambda module, state, prefix, _: state.__setitem__("extra", torch.ones(2))
        )
        return model


class Sparse(Frozen):
    def model(self):
        model = nn.Linear(4, 1)
        model.register_buffer("table", torch.eye(3).to_sparse())
        return model


class Unscored(Frozen):
    def model(self):
        return nn.Linear(4, 1)

    def fit(self, model, context):
        return muster.FitReport(examples=1, steps=0)

    def test_data(self, site):
        return torch.utils.data.TensorDataset(torch.ones(3, 7), torch.zeros(3, dtype=torch.long))


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


def test_the_model_that_was_checked_is_the_one_that_is_written(args: dict[str, Any], tmp_path: Path) -> None:
    done("check_model", args)
    task = load_task(args["task"], [tmp_path], {})
    drawn = type(task).drawn  # type: ignore[attr-defined]
    made = done("init_model", args)
    assert type(task).drawn == drawn  # type: ignore[attr-defined]
    assert made["digest"] == draw_version(task, initial_seed(3), tmp_path / "other").info.digest


REFUSED = {
    "Frozen": "model.nothing_trained",
    "Deaf": "model.not_taken",
    "Sparse": "model.unsupported",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_model_that_cannot_be_trained_together_is_refused_at_submission(
    stage: Any, args: dict[str, Any], name: str
) -> None:
    with pytest.raises(MusterError) as caught:
        await stage.submit(task=f"projected_task:{name}")
    assert caught.value.id == REFUSED[name]
    assert not stage.running.coordinator.runs


async def test_a_model_that_is_slow_to_draw_is_taken_all_the_same(
    stage: Any, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_jobs, "MODEL_SECONDS_MAX", 0.0)
    assert await stage.submit(task=args["task"])


def test_the_evaluation_is_tried_before_the_run_begins(args: dict[str, Any]) -> None:
    args |= {"task": "projected_task:Unscored", "algorithm": "sgd"}
    done("init_model", args)
    with pytest.raises(TaskError, match="the evaluation raised"):
        done("get_ready", args)
