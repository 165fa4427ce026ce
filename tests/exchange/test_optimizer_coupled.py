"""1-bit Adam at the server, warm-up rounds at admission, and the settings that would break DGC or 1-bit Adam."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from coordinator.submission.checks import check_spec
from exchange import links, optimizers
from muster.errors import ConfigError
from muster.spec.model import RunSpec, ServerTable

MakeSpec = Callable[..., RunSpec]
LR, BETA1, BETA2, TAU = 0.1, 0.8, 0.95, 1e-3


def test_one_bit_adam_is_adam_first_and_then_divides_by_what_it_has_learnt() -> None:
    table = {"optimizer": "onebit-adam", "lr": LR, "beta1": BETA1, "beta2": BETA2, "tau": TAU}
    optimizer = optimizers.build(ServerTable.model_validate(table))
    state = {name: torch.zeros(3) for name in optimizer.state_names}
    w, out = torch.tensor([1.0, -2.0, 3.0]), torch.empty(3)
    wanted, m, v = [1.0, -2.0, 3.0], [0.0] * 3, [0.0] * 3
    optimizer = replace(optimizer, warming_up=True)
    for delta in ([0.5, -1.0, 0.0], [0.25, 2.0, 0.0]):
        for i, d in enumerate(delta):
            m[i] = BETA1 * m[i] + (1 - BETA1) * d
            v[i] = BETA2 * v[i] + (1 - BETA2) * d * d
            wanted[i] += LR * m[i] / (math.sqrt(v[i]) + TAU)
        optimizer.step(w, torch.tensor(delta), state, out)
        w = out.clone()
        assert w.tolist() == pytest.approx(wanted, rel=1e-5)
    optimizer = replace(optimizer, warming_up=False)
    frozen = state["second_moment"].clone()
    for delta in ([0.5, -1.0, 1.0], [-0.25, 2.0, 1.0]):
        for i, d in enumerate(delta[:2]):
            wanted[i] += LR * d / (math.sqrt(v[i]) + TAU)
        optimizer.step(w, torch.tensor(delta), state, out)
        w = out.clone()
        assert w.tolist() == pytest.approx(
            wanted, rel=1e-5
        )  # the third, without a variance, stays where it is
    assert torch.equal(state["second_moment"], frozen)


def test_a_tiny_variance_counts_for_a_thousandth_of_the_mean() -> None:
    table = {"optimizer": "onebit-adam", "lr": 1.0, "tau": 1e-12}
    optimizer = optimizers.build(ServerTable.model_validate(table))
    state = {"first_moment": torch.zeros(2), "second_moment": torch.tensor([2.0, 1e-30])}
    out = torch.empty(2)
    optimizer.step(torch.zeros(2), torch.ones(2), state, out)
    assert out.tolist() == pytest.approx([1 / math.sqrt(2), 1 / math.sqrt(1e-3)], rel=1e-4)


def test_codecs_of_the_first_rounds(make_spec: MakeSpec) -> None:
    dense = make_spec(compression={"up": "sign", "feedback": "momentum:0.9", "warm_up_rounds": 2})
    assert [links.codecs(dense, version) for version in (0, 1, 2)] == [
        ("identity",),
        ("identity",),
        ("sign",),
    ]
    dgc = make_spec(compression={"up": "topk:0.01", "feedback": "dgc", "warm_up_rounds": 1})
    assert [links.codecs(dgc, version) for version in (0, 1)] == [("topk:0.1",), ("topk:0.01",)]
    choice = make_spec(
        compression={"up": "topk:0.01+int8|topk:0.1+int8", "feedback": "dgc", "warm_up_rounds": 1}
    )
    assert [links.codecs(choice, version) for version in (0, 1)] == [
        ("topk:0.1+int8+auto|topk:0.3162+int8+auto",),
        ("topk:0.01+int8+auto|topk:0.1+int8+auto",),
    ]


ONE_BIT: dict[str, dict[str, Any]] = {
    "compression": {"up": "sign", "feedback": "momentum:0.9", "warm_up_rounds": 1},
    "server": {"optimizer": "onebit-adam", "beta1": 0.9},
}
DGC: dict[str, dict[str, Any]] = {"compression": {"up": "topk:0.001", "feedback": "dgc:0.9"}}


LONG = "|".join(f"topk:0.{number}+int8:stochastic+rice" for number in range(1, 9))
CLIPPED: dict[str, dict[str, Any]] = {"compression": {"up": LONG, "feedback": "dgc:0.9:nesterov:clip=1"}}


@pytest.mark.parametrize("tables", [ONE_BIT, DGC, CLIPPED])
def test_settings_that_go_together(make_spec: MakeSpec, tables: dict[str, Any]) -> None:
    check_spec(make_spec(**tables))


@pytest.mark.parametrize(
    ("tables", "changes", "said"),
    [
        (DGC, {"server": {"optimizer": "momentum"}}, "a second one"),
        (DGC, {"server": {"optimizer": "adam"}}, "a second one"),
        (DGC, {"train": {"worker_momentum": 0.9}}, "train.worker_momentum"),
        (DGC, {"compression": {"up": "int8"}}, "leaves coordinates out"),
        (DGC, {"compression": {"down_feedback": "dgc:0.9", "down": "topk:0.1"}}, "the step down must not"),
        (DGC, {"compression": {"up": LONG, "warm_up_rounds": 1}}, "or compression.warm_up_rounds 0"),
        (
            {},
            {"compression": {"down_feedback": "dgc:0:clip=1", "down": "topk:0.1"}},
            "clips what peers send up",
        ),
        (ONE_BIT, {"compression": {"warm_up_rounds": 0}}, "second moment is learnt"),
        (ONE_BIT, {"compression": {"warm_up_rounds": 2}}, "2 first rounds are all 2 rounds of the run"),
        (ONE_BIT, {"compression": {"feedback": "ef14"}}, "needs compression.feedback momentum:0.9"),
        (ONE_BIT, {"server": {"beta1": 0.8}}, "needs compression.feedback momentum:0.8"),
        (ONE_BIT, {"server": {"optimizer": "sgd"}}, "belongs to server.optimizer onebit-adam"),
        (ONE_BIT, {"train": {"worker_momentum": 0.5}}, "train.worker_momentum"),
        (
            {},
            {"compression": {"up": "topk:0.1", "feedback": "ef21", "warm_up_rounds": 1}},
            "needs no compression.warm_up_rounds",
        ),
        (ONE_BIT, {"compression": {"up": "identity"}}, "without loss for its warm-up"),
        ({}, {"compression": {"up": "identity", "feedback": "ef21"}}, "compression.up loses nothing"),
        ({}, {"compression": {"up": "terngrad", "feedback": "ef14"}}, "contractive"),
        ({}, {"compression": {"up": "topk:0.01", "feedback": "econtrol:0.5"}}, "diverge"),
    ],
)
def test_settings_that_break_it_are_refused(
    make_spec: MakeSpec, tables: dict[str, Any], changes: dict[str, dict[str, Any]], said: str
) -> None:
    merged = {name: {**tables.get(name, {}), **changes.get(name, {})} for name in {*tables, *changes}}
    with pytest.raises(ConfigError, match=r"spec asks for what cannot be done here") as caught:
        check_spec(make_spec(**merged))
    assert said in str(caught.value)
