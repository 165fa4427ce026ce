"""What a task sets for all of torch, and what its module keeps while it is evaluated, harm nothing of the next job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

HEAD = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster

"""

SETS = (
    HEAD
    + """
class Case(muster.Task):
    def model(self):
        torch.set_default_dtype(torch.{dtype})
        return nn.Linear(8, 2)

    def train_data(self, site):
        inputs = torch.randn(20, 8, generator=torch.Generator().manual_seed(site.data.get("index", 9)))
        assert inputs.dtype == torch.{dtype}
        return TensorDataset(inputs, (inputs[:, 0] > 0).long())

    def test_data(self, site):
        return self.train_data(site)
"""
)

AT_IMPORT = (
    HEAD
    + "torch.set_default_dtype(torch.float64)\n"
    + SETS.format(dtype="float64")[len(HEAD) :].replace(
        "        torch.set_default_dtype(torch.float64)\n", ""
    )
)

Rounds = Callable[..., Any]


@pytest.mark.parametrize(
    ("dtype", "up"),
    [
        ("float64", "powersgd:1"),
        ("float64", "dgc:0.9"),
        ("bfloat16", "identity"),
        ("bfloat16", "topk:0.5+int8"),
    ],
)
def test_a_default_dtype_is_the_tasks_alone(rounds: Rounds, dtype: str, up: str) -> None:
    feedback = {"feedback": "dgc:0.9"} if up == "dgc:0.9" else {}
    run = rounds(SETS.format(dtype=dtype), compression={"up": "topk:0.5" if feedback else up, **feedback})
    for _ in range(2):
        run.round()
        assert run.evaluate("site-0")["examples"] == 20
    assert torch.get_default_dtype() == torch.float32
    assert run.model()["weight"].dtype == getattr(torch, dtype)


def test_a_default_dtype_that_the_modules_import_sets_is_there_for_all_its_code(rounds: Rounds) -> None:
    run = rounds(AT_IMPORT)
    run.round()
    assert torch.get_default_dtype() == torch.float32
    assert run.model()["weight"].dtype == torch.float64


def test_another_task_in_the_same_worker_has_defaults_of_its_own(rounds: Rounds) -> None:
    rounds(SETS.format(dtype="float64")).round()
    plain = rounds(
        SETS.format(dtype="float32").replace("        torch.set_default_dtype(torch.float32)\n", "")
    )
    plain.round()
    assert plain.model()["weight"].dtype == torch.float32


def test_a_default_device_stays_with_the_task(rounds: Rounds) -> None:
    source = (
        SETS.format(dtype="float32")
        .replace(
            "        return nn.Linear(8, 2)",
            "        torch.set_default_device('meta')\n        return nn.Linear(8, 2, device='cpu')",
        )
        .replace("generator=torch.Generator()", "device='cpu', generator=torch.Generator('cpu')")
    )
    run = rounds(source)
    run.round()
    assert torch.get_default_device() == torch.device("cpu")


KEEPS = (
    HEAD
    + """
class Positions(nn.Module):
    table = None

    def forward(self, x):
        if self.table is None or len(self.table) < x.shape[1]:
            self.table = torch.outer(torch.arange(x.shape[1]).float(), self.scale)
        return x * self.table[: x.shape[1]]

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.calls = 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.pos, self.out = nn.Embedding(10, 8), Positions(), nn.Linear(8, 2)

    def forward(self, t):
        self.pos.calls += self.training
        if self.training:
            self.pos.table = self.pos.table if self.pos.table is not None and not self.pos.table.requires_grad else None
        return self.out(self.pos(self.emb(t)).mean(1))


class Case(muster.Task):
    def model(self):
        return Net()

    def train_data(self, site, length=6):
        t = torch.randint(0, 10, (40, length), generator=torch.Generator().manual_seed(site.data["index"]))
        return TensorDataset(t, (t[:, 0] > 4).long())

    def test_data(self, site):
        return self.train_data(site, 12)

    def evaluate(self, model, site):
        with {how}:
            model(self.test_data(site).tensors[0])
        return {{"calls": model.pos.calls}}
"""
)


@pytest.mark.parametrize("how", ["torch.inference_mode()", "torch.no_grad()"])
def test_what_a_module_keeps_while_it_is_evaluated_is_not_trained_with(rounds: Rounds, how: str) -> None:
    alone, scored = (rounds(KEEPS.format(how=how)) for _ in range(2))
    for _ in range(3):
        alone.round()
        scored.round()
        for peer in scored.peers:
            scored.evaluate(peer)
    for name, value in alone.model().items():
        assert torch.equal(scored.model()[name], value), name
    assert alone.model()["pos.scale"].ne(1).all()


def test_what_a_module_keeps_outside_its_state_outlives_an_evaluation(rounds: Rounds) -> None:
    run = rounds(KEEPS.format(how="torch.no_grad()"), peers=1)
    calls = []
    for _ in range(3):
        run.round()
        calls.append(run.evaluate("site-0")["metrics"]["calls"])
    assert calls == sorted(set(calls))


def test_a_module_that_cannot_be_copied_is_drawn_anew_after_its_evaluation(rounds: Rounds) -> None:
    source = KEEPS.format(how="torch.inference_mode()").replace(
        "class Net(nn.Module):",
        "class Net(nn.Module):\n    def __deepcopy__(self, memo):\n        raise TypeError\n",
    )
    run, alone = rounds(source), rounds(source)
    for _ in range(2):
        alone.round()
        run.round()
        run.evaluate("site-0")
        run.evaluate("site-1")
    assert torch.equal(run.model()["pos.scale"], alone.model()["pos.scale"])


def test_gradients_that_an_evaluation_turned_off_are_on_again(rounds: Rounds) -> None:
    source = KEEPS.format(how="torch.no_grad()").replace(
        "    def evaluate(self, model, site):",
        "    def evaluate(self, model, site):\n        torch.set_grad_enabled(False)",
    )
    run = rounds(source)
    run.round()
    run.evaluate("site-0")
    run.round()
    assert torch.is_grad_enabled()
