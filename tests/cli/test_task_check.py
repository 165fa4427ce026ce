"""`muster task check`: what a site would do with a task, on this machine and at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Sound(muster.Task):
    def model(self):
        model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
        model[0].requires_grad_(False)
        return model

    def train_data(self, site):
        x = torch.randn(site.data["count"], 8, generator=torch.Generator().manual_seed(1))
        return TensorDataset(x, (x[:, 0] > 0).long())

    def test_data(self, site):
        return self.train_data(site)


class Loud(Sound):
    def evaluate(self, model, site):
        return {"accuracy": 0.5, "matrix": torch.eye(3), "auc": float("nan")}


class Looped(Sound):
    def fit(self, model, context):
        assert context.trial and context.train["epochs"] == 1
        return muster.FitReport(examples=5, steps=3)


class Wrong(Looped):
    def fit(self, model, context):
        return 5


class Thawing(Looped):
    def fit(self, model, context):
        with torch.no_grad():
            model[0].weight.add_(1)
        return super().fit(model, context)


class Deaf(Sound):
    # Its module gives a tensor of its state anew each time.

    def model(self):
        model = super().model()
        model.register_state_dict_post_hook(
            lambda module, state, prefix, _: state.__setitem__("bias", torch.ones(2))
        )
        return model


class Misspelt(Sound):
    buffers = {"0.wieght": "mean"}


class Failing(Sound):
    def train_data(self, site):
        return open("/nowhere/at/all.csv")
"""


@pytest.fixture
def check(muster: Callable[..., Any], at_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "checked_task", raising=False)
    (at_home / "checked_task.py").write_text(TASK)
    return lambda *arguments: muster("task", "check", *arguments, "--data", "count=40", "--json")


def test_it_tells_what_it_saw(check: Callable[..., Any]) -> None:
    said = check("checked_task:Sound")
    assert said.code == 0, said.err
    data = said.data
    assert (data["parameters_trained"], data["parameters_frozen"], data["examples"]) == (10, 36, 40)
    assert data["batch"] == "a list of 2: float32 [32, 8], int64 [32]"
    assert data["loss_after"] != data["loss_before"] > 0
    assert data["metrics"].keys() == {"loss", "accuracy", "examples"}
    assert [*data["seconds"]] == [
        *(
            "import",
            "model",
            "train_data",
            "batch",
            "forward and backward",
            "one step",
            "test_data",
            "evaluate",
        )
    ]
    assert data["warnings"] == []


def test_what_is_no_metric_is_named_and_the_rest_is_kept(check: Callable[..., Any]) -> None:
    data = check("checked_task:Loud").data
    assert data["metrics"] == {"accuracy": 0.5, "auc": "NaN"}
    assert "matrix" in data["warnings"][0]


def test_a_loop_of_its_own_is_run_and_its_report_looked_at(check: Callable[..., Any]) -> None:
    assert check("checked_task:Looped").data["steps"] == 3
    assert check("checked_task:Wrong").data["error"]["id"] == "task.bad_report"


@pytest.mark.parametrize(
    ("task", "code", "error_id"),
    [
        ("checked_task:Failing", 1, "task.data_failed"),
        ("checked_task:Thawing", 1, "task.frozen_changed"),
        ("checked_task:Deaf", 6, "model.not_taken"),
        ("checked_task:Misspelt", 6, "model.bad_move"),
        ("checked_task:Missing", 6, "task.not_found"),
        ("no_such_module:Task", 6, "task.not_found"),
        ("no task", 6, "task.malformed"),
    ],
)
def test_a_failure_has_a_name_and_the_users_own_line(
    check: Callable[..., Any], at_home: Path, task: str, code: int, error_id: str
) -> None:
    said = check(task)
    assert (said.code, said.data["error"]["id"]) == (code, error_id)
    if error_id == "task.data_failed":
        assert said.data["error"]["cause"].startswith(f"{at_home / 'checked_task.py'}, line ")
        assert said.data["error"]["cause"].endswith("in train_data")


def test_a_run_spec_tells_options_and_training(check: Callable[..., Any], at_home: Path) -> None:
    (at_home / "run.toml").write_text('task = "checked_task:Sound"\nrounds = 9\n[train]\nbatch_size = 8\n')
    assert check("run.toml").data["batch"] == "a list of 2: float32 [8, 8], int64 [8]"
