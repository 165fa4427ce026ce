"""Methods of two ends over real rounds: DGC and 1-bit Adam on digits, MASHA on a saddle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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
            "aggregation": {
                "rule": "mean"
            },  # of three sites with half of the classes each nobody can be left out
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
        compression={"up": "sign", "feedback": "momentum:0.9", "warm_up_rounds": 12, "down": "sign"},
        server={"optimizer": "onebit-adam", "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-8},
    )
    async with start_local(
        tmp_path, peers=3, workers=1, allow=["examples.digits:*"], task_folders=[ROOT]
    ) as federation:
        sparse, one_bit = await federation.run_to_end(dgc), await federation.run_to_end(adam)
    for run in (sparse, one_bit):
        assert run.state == "FINISHED", run.reason
        assert run.metrics["accuracy"] > 0.85
        assert run.bytes_up < run.bytes_up_dense / 3
    # 12 of 59 versions go down whole, the scale once, and the rest in one bit a coordinate.
    assert one_bit.bytes_down < 0.4 * sparse.bytes_down


@pytest.mark.timeout(120)
async def test_dgc_warms_up_a_choice_of_codecs_and_clips(tmp_path: Path) -> None:
    """Both ends spell the larger shares alike, and clipping to next to nothing leaves the model where it began."""
    choice = {"up": "topk:0.01+int8|topk:0.1+int8", "feedback": "dgc:0.9", "warm_up_rounds": 1}
    tables: dict[str, Any] = {"train": {"steps": 1, "lr": 0.1}, "rounds": 3, "evaluate": {"every": 3}}
    runs = spec(**tables, compression=choice), spec(**tables, compression={**choice, "feedback": CLIPPED})
    async with start_local(
        tmp_path, peers=3, workers=1, allow=["examples.digits:*"], task_folders=[ROOT]
    ) as federation:
        models: list[Mapping[str, Tensor]] = []
        for run in runs:
            ended = await federation.run_to_end(run)
            assert ended.state == "FINISHED", ended.reason
            models.append(await federation.model(ended.run_id))
    gaps = torch.cat([(models[0][name] - models[1][name]).flatten() for name in models[0]])
    assert float(gaps.norm()) > 0.01  # of what the first one has learnt


CLIPPED = "dgc:0.9:nesterov:clip=1e-6"

SADDLE = '''
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class TurnedSign(torch.autograd.Function):
    """The gradient of who maximises, with its sign turned."""

    @staticmethod
    def forward(ctx, y):
        return y.view_as(y)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Players(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(20))
        self.y = nn.Parameter(torch.zeros(20))

    def forward(self, rows):
        return rows


class Saddle(muster.Task):
    """min over x, max over y of a bilinear game whose parts, one a site, add up to (x - 1) y."""

    def model(self):
        return Players()

    def train_data(self, site):
        generator = torch.Generator().manual_seed(4)
        own = 0.2 * torch.randn(3, 20, 20, generator=generator)
        matrix = torch.eye(20) + own[site.data["index"]] - own.mean(0)
        pull = torch.randn(3, 20, generator=generator)
        return TensorDataset(matrix[None], (pull[site.data["index"]] - pull.mean(0))[None])

    def loss(self, model, batch):
        matrix = batch[0][0]
        y = TurnedSign.apply(model.y)
        return (model.x - 1) @ matrix @ y + batch[1][0] @ (model.x + y)

    def evaluate(self, model, site):
        distance = float((model.x - 1).norm() + model.y.norm())
        return {"loss": distance, "distance": distance, "examples": 1.0}
'''


@pytest.mark.timeout(200)
async def test_masha_finds_a_saddle_that_plain_steps_run_away_from(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "saddle_task.py").write_text(SADDLE)
    tables: dict[str, Any] = {
        "task": "saddle_task:Saddle",
        "task_options": {},
        "rounds": 80,
        "evaluate": {"every": 80},
        "train": {"steps": 1, "lr": 1.0},
        "aggregation": {"rule": "mean"},
    }
    masha = spec(
        **tables,
        server={"optimizer": "masha", "lr": 0.4, "momentum": 0.5},
        compression={"up": "randk:0.5", "feedback": "masha:0.5"},
    )
    plain = spec(**tables, server={"lr": 0.4}, compression={"up": "randk:0.5"})
    async with start_local(
        tmp_path, peers=3, allow=["saddle_task:*"], task_folders=[tmp_path / "tasks"]
    ) as federation:
        found, lost = await federation.run_to_end(masha), await federation.run_to_end(plain)
    assert found.state == lost.state == "FINISHED", (found.reason, lost.reason)
    began = 20**0.5
    assert found.metrics["distance"] < 0.15 * began
    assert lost.metrics["distance"] > 10 * began
