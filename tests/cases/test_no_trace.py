"""What a trial or an evaluation keeps in the task and its module is in nobody's way afterwards."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import muster
from muster.model.initial import draw_version
from muster.seeds import initial_seed
from muster.task.copies import spared, without_inference
from muster.task.loading import load_task
from peer.work import jobs
from peer.work.orders import EvaluateOrder, PrepareOrder, TrainOrder

TASK = """
import threading

import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Averaging(nn.Module):
    # Whatever it can remember of its examples, it remembers, and it gives.

    def __init__(self, lock):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.average = torch.zeros(4)
        self.seen = []
        if lock:
            self.lock = threading.Lock()  # which cannot be copied

    def forward(self, x):
        self.average = 0.9 * self.average + 0.1 * x.mean(0)
        self.seen.append(float(x.sum()))
        return self.linear(x + self.average + len(self.seen))


class Remembers(muster.Task):
    def __init__(self):
        self.history = []
        self.average = torch.ones(())

    def model(self):
        return Averaging(self.options.get("lock"))

    def train_data(self, site):
        self.loads = getattr(self, "loads", 0) + 1
        self.scale = 2.0
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
        return TensorDataset(x, (x[:, 0] > 0).long())

    def test_data(self, site):
        return self.train_data(site)

    def loss(self, model, batch):
        loss = super().loss(model, batch) * self.scale
        self.history.append(float(loss.detach()))
        self.average = 0.5 * self.average + 0.5 * loss.detach()
        return loss * (len(self.history) + self.average)


class Looped(Remembers):
    def fit(self, model, context):
        data = self.train_data(context.site)
        with torch.no_grad():
            model.linear.bias += self.loads
        return muster.FitReport(examples=len(data), steps=1)


class Dataless(Looped):
    def train_data(self, site):
        raise NotImplementedError

    def test_data(self, site):
        return None

    def fit(self, model, context):
        return muster.FitReport(examples=1, steps=0)


class Stepping(Remembers):
    # A loop of its own that remembers from round to round.

    def test_data(self, site):
        return TensorDataset(torch.randn(40, 4), torch.zeros(40, dtype=torch.long))  # drawn when it is asked for

    def fit(self, model, context):
        self.optimizer = getattr(self, "optimizer", torch.optim.Adam(model.parameters(), lr=0.1))
        batches = torch.utils.data.DataLoader(self.train_data(context.site), batch_size=5, shuffle=True)
        for batch in batches:
            self.loss(model, batch).backward()
            self.optimizer.step()
        inputs, _ = self.test_data(context.site)[:]
        with torch.no_grad():
            model.linear.bias += inputs.mean()
        return muster.FitReport(examples=len(batches.dataset), steps=len(batches))


class Tabled(Remembers):
    # Its evaluation, in a mode of its own, makes what its training takes too.

    table = None

    def loss(self, model, batch):
        if self.table is None:
            self.table = {"parts": [(torch.ones(2), 1.0)]}
        return nn.functional.cross_entropy(model(batch[0]) * self.table["parts"][0][0], batch[1])

    def evaluate(self, model, site):
        with torch.inference_mode():
            return {"loss": float(self.loss(model, self.test_data(site)[:4]))}


class Unscored(Remembers):
    def test_data(self, site):
        return TensorDataset(torch.ones(3, 7), torch.zeros(3, dtype=torch.long))
"""


@pytest.fixture
def orders(tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "traced_task.py").write_text(TASK)

    def make(kind: Any, name: str, options: Any = None, **more: Any) -> Any:
        task = load_task(f"traced_task:{name}", [tmp_path], options)
        base = tmp_path / f"{name}.base"
        if not base.exists():
            draw_version(task, initial_seed(3), base)
        table = muster_spec().train.model_dump(mode="json")
        values: dict[str, Any] = {
            "run_id": "r",
            "task": f"traced_task:{name}",
            "task_folders": (str(tmp_path),),
            "options": options or {},
            "site_name": "ada",
            "site_data": {},
            "site_seed": 3,
            "device": "cpu",
            "base": str(base),
            "seed": 5,
            **more,
        }
        if kind is PrepareOrder:
            values = {"role": "train", "evaluates": True, "train": table, "base_version": 0, **values}
            values |= {"base_digest": "ba5e", "round": 1, "codec": "identity"}
        if kind is TrainOrder:
            values |= {"assignment_id": "a", "round": 1, "base_version": 0, "base_digest": "ba5e"}
            values |= {
                "train": table,
                "codec": "identity",
                "feedback": "none",
                "counted_round": 0,
                "state": {},
            }
            values |= {"update": str(tmp_path / "update"), "staged": str(tmp_path / "staged")}
        return asdict(kind(**values))

    jobs._places.clear()
    return make


def muster_spec() -> Any:
    from muster.spec.model import RunSpec

    return RunSpec.model_validate({"task": "a:B", "rounds": 1})


def done(job: str, order: Any) -> dict[str, Any]:
    return jobs.JOBS[job](order, lambda _share: None)


@pytest.mark.parametrize("name", ["Remembers", "Stepping"])
@pytest.mark.parametrize("options", [{}, {"lock": True}], ids=["copied", "not copied"])
def test_training_gives_the_same_bytes_with_and_without_a_trial(
    orders: Callable[..., Any], tmp_path: Path, options: Any, name: str
) -> None:
    done("train", orders(TrainOrder, name, options))
    plain = (tmp_path / "update").read_bytes()
    jobs._places.clear()
    done("get_ready", orders(PrepareOrder, name, options, evaluates=False))
    done("train", orders(TrainOrder, name, options))
    assert (tmp_path / "update").read_bytes() == plain


@pytest.mark.parametrize("name", ["Looped", "Remembers"])
def test_the_data_are_loaded_once_and_ahead_of_training(orders: Callable[..., Any], name: str) -> None:
    order = orders(PrepareOrder, name)
    if name == "Remembers":
        order["train"] |= {"algorithm": "somebody-elses"}
    done("get_ready", order)
    (place,) = jobs._places.values()
    assert vars(place.task)["loads"] == 1
    done("train", orders(TrainOrder, name))
    assert vars(place.task)["loads"] == 1


def test_data_that_a_loop_of_its_own_never_asks_for_need_not_be_there(orders: Callable[..., Any]) -> None:
    done("get_ready", orders(PrepareOrder, "Dataless"))
    assert done("train", orders(TrainOrder, "Dataless"))["examples"] == 1


def test_an_evaluation_in_inference_mode_spoils_no_training(orders: Callable[..., Any]) -> None:
    done("evaluate", orders(EvaluateOrder, "Tabled"))
    assert done("train", orders(TrainOrder, "Tabled"))["steps"] == 1


def test_a_trial_of_the_evaluation_that_fails_goes_with_the_next_report(orders: Callable[..., Any]) -> None:
    done("get_ready", orders(PrepareOrder, "Unscored"))
    (told,) = done("train", orders(TrainOrder, "Unscored"))["warnings"]
    assert told.startswith("the trial of the evaluation failed: the evaluation raised")
    assert done("train", orders(TrainOrder, "Unscored"))["warnings"] == ()


class Holding(muster.Task):
    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.parameters = [*net.parameters()]
        self.data = TensorDataset(torch.ones(3))
        self.lock = threading.Lock()
        self.recent: deque[float] = deque([1.0])
        self.scale = self.scaled

    def model(self) -> nn.Module:
        return self.net

    def train_data(self, site: muster.Site) -> Any:
        return self.data

    def scaled(self, x: Tensor) -> Tensor:
        self.recent.append(2.0)
        return x


def test_a_copy_refers_to_its_own_and_shares_data() -> None:
    net = nn.Linear(2, 2)
    task = Holding(net)
    double, model, shared = spared(task, net)
    assert isinstance(double, Holding)
    assert shared == ("lock",)
    assert double.net is model is not net
    assert [id(each) for each in double.parameters] == [id(each) for each in model.parameters()]
    assert (double.data is task.data, double.lock is task.lock) == (True, True)
    double.scale(torch.ones(1))
    assert (list(task.recent), list(double.recent)) == ([1.0], [1.0, 2.0])


class Kept(muster.Task):
    """With much to copy, one thing after the other."""

    def __init__(self) -> None:
        for number in range(60):
            setattr(self, f"list{number}", [number])
            setattr(self, f"tensor{number}", torch.full((2,), float(number)))

    def model(self) -> nn.Module:
        return nn.Linear(2, 2)

    def train_data(self, site: muster.Site) -> Any:
        raise NotImplementedError


def test_all_that_a_task_keeps_is_copied_as_it_is() -> None:
    task = Kept()
    double, _, shared = spared(task, task.model())
    assert shared == ()
    for name, value in vars(task).items():
        twin = vars(double)[name]
        if isinstance(value, Tensor):
            assert twin is not value and torch.equal(twin, value)
        elif isinstance(value, list):
            assert twin is not value and twin == value


def test_tensors_of_inference_mode_become_plain_ones_wherever_a_task_keeps_them() -> None:
    task = Holding(nn.Linear(2, 2))
    with torch.inference_mode():
        made = torch.ones(3)
        vars(task)["kept"] = {"pair": (made, 1), "list": [made], "self": task}
    without_inference(task)
    kept = vars(task)["kept"]
    found: list[Tensor] = [kept["pair"][0], *kept["list"]]
    assert not any(each.is_inference() for each in found)
    (torch.ones(3, requires_grad=True) * found[0]).sum().backward()  # type: ignore[no-untyped-call]
