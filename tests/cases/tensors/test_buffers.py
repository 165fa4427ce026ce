"""What is not trained moves by its meaning, whatever rule, codec, optimizer and downlink the run has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Rounds = Callable[..., Any]

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Marked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
        self.register_buffer("seen", torch.tensor(False))
        self.register_buffer("never", torch.tensor(False))
        self.register_buffer("steps", torch.tensor(0, dtype=torch.int32))
        self.register_buffer("least", torch.tensor(float("inf")))
        self.register_buffer("missing", torch.tensor([float("nan"), 1.0]))

    def forward(self, x):
        if self.training:
            self.seen.fill_(True)
            self.steps.add_(len(x))
            self.least.copy_(torch.minimum(self.least, x.detach().min()))
        return x


class Case(muster.Task):
    buffers = {"*.least": "min"}

    def model(self):
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), Marked(), nn.ReLU(), nn.Linear(16, 2))

    def train_data(self, site):
        count = 64 + 8 * site.data["index"]
        x = torch.randn(count, 8, generator=torch.Generator().manual_seed(site.data["index"])) * 0.05
        return TensorDataset(x, (x[:, 0] > 0).long())
"""


def _check(state: dict[str, torch.Tensor], peers: int, rounds: int) -> None:
    assert state["1.running_var"].ge(0).all()
    assert state["1.running_var"].ne(1).all()
    mask = torch.full((4, 4), float("-inf")).triu(1)
    assert torch.equal(state["2.mask"], mask)
    assert bool(state["2.seen"])
    assert not bool(state["2.never"])
    assert state["2.steps"].dtype == torch.int32
    assert state["2.missing"].isnan().tolist() == [True, False]
    assert state["2.least"].isfinite()


@pytest.mark.parametrize(
    "tables",
    [
        {"server": {"optimizer": "momentum"}},
        {"server": {"optimizer": "adam", "lr": 0.1}},
        {"server": {"optimizer": "sgd", "lr": 3.0}},
        {"compression": {"up": "sign", "feedback": "ef14"}},
        {"compression": {"up": "ferret:64", "feedback": "none", "down": "topk:0.1"}},
        {"compression": {"up": "topk:0.1", "feedback": "ef21", "down": "int8"}},
        {"compression": {"up": "powersgd:1:common"}, "aggregation": {"rule": "mean"}},
        {
            "compression": {"up": "topk:0.1", "feedback": "ef14", "down": "replay"},
            "aggregation": {"rule": "mean"},
        },
        {"train": {"worker_momentum": 0.9, "epochs": 2}, "aggregation": {"rule": "centered-clipping"}},
        {"aggregation": {"rule": "krum", "faults": 1, "pre": ["nnm"]}},
        {
            "compression": {"up": "sign", "feedback": "momentum", "down": "sign", "warm_up_rounds": 2},
            "server": {"optimizer": "onebit-adam"},
        },
    ],
    ids=str,
)
def test_buffers_move_by_the_plain_aggregate_counters_and_flags_by_their_order(
    rounds: Rounds, tables: dict[str, Any]
) -> None:

    run = rounds(TASK, peers=5, **{"train": {"lr": 0.05, "epochs": 2}, **tables})
    faults = run.spec.aggregation.faults_of(5)
    for number in range(1, 4):
        run.round()
        state = run.model()
        _check(state, 5, number)
        # The greatest of five, or the second greatest where one may lie: they have 64 to 96 examples.
        examples = 64 + 8 * (4 - faults)
        if number == 1:
            assert int(state["2.steps"]) == 2 * examples
            assert int(state["1.num_batches_tracked"]) == 2 * -(-examples // 32)
