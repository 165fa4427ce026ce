"""What requires no gradient neither travels nor moves, whatever the codec, up and down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from exchange.payload import PayloadReader
from muster.errors import TaskError
from peer.work.fixed import fixed_tail

Rounds = Callable[..., Any]

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Case(muster.Task):
    def model(self):
        net = nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 2))
        net[0].requires_grad_(False)
        nn.init.constant_(net[0].weight, 0.25)
        nn.init.constant_(net[0].bias, 0.5)
        return net

    def train_data(self, site):
        x = torch.randn(200, 8, generator=torch.Generator().manual_seed(site.data["index"]))
        return TensorDataset(x, (x.sum(1) > 0).long())
"""


@pytest.mark.parametrize(
    ("up", "feedback", "down"),
    [
        ("identity", "none", "identity"),
        ("topk:0.1", "ef14", "sign"),
        ("sign", "ef14", "topk:0.1"),
        ("ferret:64", "none", "int8"),
        ("powersgd:1", "ef14", "identity"),
    ],
)
def test_frozen_parameters_stay_to_the_bit(rounds: Rounds, up: str, feedback: str, down: str) -> None:
    run = rounds(TASK, compression={"up": up, "feedback": feedback, "down": down}, train={"lr": 0.1})
    first = run.model()
    for _ in range(3):
        made = run.round()
    state = run.model()
    assert torch.equal(state["0.weight"], torch.full((300, 8), 0.25))
    assert torch.equal(state["0.bias"], torch.full((300,), 0.5))
    assert not torch.equal(state["2.weight"], first["2.weight"])
    reader = PayloadReader(made.updates[0].path)
    assert [(group.name, group.size) for group in reader.manifest.groups] == [("params", 602)]
    reader.close()


TEACHER = TASK.replace(
    "    def train_data",
    """    def loss(self, model, batch):
        with torch.no_grad():
            model[0].weight.lerp_(model[0].weight + 1, 0.5)
        return super().loss(model, batch)

    def train_data""",
)


def test_a_frozen_parameter_that_the_task_sets_itself_is_named_until_it_says_how_it_moves(
    rounds: Rounds,
) -> None:
    with pytest.raises(TaskError, match=r"'0\.weight', which requires no gradient") as caught:
        rounds(TEACHER).round()
    assert "buffers" in caught.value.fix
    said = TEACHER.replace("    def model", '    buffers = {"0.*": "mean"}\n\n    def model')
    run = rounds(said)
    run.round()
    assert run.model()["0.weight"].gt(1).all()
    kept = rounds(said.replace('"mean"', '"keep"'))
    kept.round()
    assert torch.equal(kept.model()["0.weight"], torch.full((300, 8), 0.25))


def test_a_version_that_is_fetched_whole_comes_without_what_is_frozen(rounds: Rounds) -> None:
    run = rounds(TASK)
    first = run.base
    run.round()
    tail = fixed_tail(first)
    assert tail is not None
    assert tail.size == 4 * (300 * 8 + 300)
    assert first.read_bytes()[-tail.size :] == run.base.read_bytes()[-tail.size :]
    assert fixed_tail(rounds(TASK.replace("net[0].requires_grad_(False)", "")).base) is None
