"""The run spec's [exchange]: which parameters travel, and whose buffers are whose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exchange.payload import PayloadReader
from exchange.tensorfile import read_tensors
from muster.errors import ConfigError

Rounds = Callable[..., Any]

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Case(muster.Task):
    def model(self):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def train_data(self, site):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(site.data["index"]))
        return TensorDataset(x + 3 * site.data["index"], (x.sum(1) > 0).long())

    def evaluate(self, model, site):
        state = model.state_dict()
        return {"mean": float(state["1.running_mean"].sum()), "bias": float(state["2.bias"].sum())}
"""
TRAIN = {"lr": 0.1, "steps": 4}


def own(run: Any, peer: str) -> dict[str, torch.Tensor]:
    return read_tensors(Path(run._kept[peer]["local"]))


def groups(run: Any, made: Any) -> list[str]:
    reader = PayloadReader(made.updates[0].path)
    found = [f"{group.name}:{group.size}" for group in reader.manifest.groups]
    reader.close()
    return found


def test_unless_said_all_that_is_trained_travels_and_buffers_are_averaged(rounds: Rounds) -> None:
    run = rounds(TASK, train=TRAIN)
    made = run.round()
    assert groups(run, made) == ["params:74", "buffers:16", "counters:1"]
    assert "local" not in run._kept["site-0"]


def test_excluded_parameters_stay_each_peers_own_and_are_trained_there(rounds: Rounds) -> None:
    run = rounds(TASK, train=TRAIN, exchange={"exclude": ["2.*"]})
    first = run.model()
    made = run.round()
    assert groups(run, made) == ["params:56", "buffers:16", "counters:1"]
    after = [own(run, peer)["2.weight"].clone() for peer in run.peers]
    assert not torch.equal(*after)
    run.round()
    for peer, before in zip(run.peers, after, strict=True):
        assert not torch.equal(own(run, peer)["2.weight"], before)
        assert run.evaluate(peer)["metrics"]["bias"] == pytest.approx(float(own(run, peer)["2.bias"].sum()))
    last = run.model()
    assert torch.equal(last["2.weight"], first["2.weight"])
    assert not torch.equal(last["0.weight"], first["0.weight"])


def test_what_a_peer_keeps_is_where_its_next_round_begins(rounds: Rounds) -> None:
    run = rounds(TASK, train=TRAIN | {"lr": 1e-9}, exchange={"include": ["0.*", "1.*"]})
    run.round()
    kept = own(run, "site-0")
    assert sorted(kept) == ["2.bias", "2.weight"]
    moved = {name: values + 5.0 for name, values in kept.items()}
    from exchange.tensorfile import write_tensors

    write_tensors(Path(run._kept["site-0"]["local"]), moved)
    run.round()
    assert torch.allclose(own(run, "site-0")["2.bias"], moved["2.bias"], atol=1e-5)


def test_local_buffers_are_each_peers_own(rounds: Rounds) -> None:
    run = rounds(TASK, train=TRAIN, exchange={"buffers": "local"})
    for _ in range(2):
        made = run.round()
    assert groups(run, made) == ["params:74"]
    means = [own(run, peer)["1.running_mean"] for peer in run.peers]
    assert float((means[0] - means[1]).norm()) > 0.1
    assert own(run, "site-0")["1.num_batches_tracked"] == 8
    assert run.model()["1.running_mean"].eq(0.0).all()
    found = run.evaluate("site-1")["metrics"]["mean"]
    assert found == pytest.approx(float(means[1].sum()))


def test_buffers_of_the_coordinator_are_those_of_version_0(rounds: Rounds) -> None:
    run = rounds(TASK, train=TRAIN, exchange={"buffers": "coordinator"})
    for _ in range(2):
        made = run.round()
    assert groups(run, made) == ["params:74"]
    assert run.model()["1.running_mean"].eq(0.0).all()
    assert "local" not in run._kept["site-0"]


def test_what_the_task_says_of_a_buffer_goes_before_the_run(rounds: Rounds) -> None:
    said = TASK.replace("    def model", '    buffers = {"*.running_var": "max"}\n\n    def model')
    run = rounds(said, train=TRAIN, exchange={"buffers": "local"})
    made = run.round()
    assert groups(run, made) == ["params:74", "buffers:8"]
    local = TASK.replace("    def model", '    buffers = {"*.running_*": "local"}\n\n    def model')
    run = rounds(local, train=TRAIN)
    made = run.round()
    assert groups(run, made) == ["params:74", "counters:1"]
    assert sorted(own(run, "site-0")) == ["1.running_mean", "1.running_var"]


@pytest.mark.parametrize(
    ("exchange", "told"),
    [
        ({"exclude": ["head.*"]}, "'head.*' names no parameter that is trained"),
        ({"exclude": ["1.running_mean"]}, "'1.running_mean' names no parameter that is trained"),
        ({"exclude": ["*"]}, "no parameter travels"),
    ],
)
def test_a_pattern_that_leaves_nothing_or_means_nothing_is_told(
    rounds: Rounds, exchange: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        rounds(TASK, exchange=exchange)
    assert caught.value.id == "model.bad_pattern"
    assert told in caught.value.message
