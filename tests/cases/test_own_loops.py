"""A task's own training loop is tried before it trains: its mistakes are told then, and an honest one is let be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split

import muster
from muster.errors import TaskError
from muster.task import fittrial
from muster.task.fittrial import FitTried, try_fit
from muster.task.loading import keep_data

BATCH, EXAMPLES = 4, 40
Loop = Callable[["Looped", nn.Module, muster.FitContext], Any]


class Looped(muster.Task):
    """Trains by a loop that a test gives."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.history: list[int] = []
        keep_data(self)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2).requires_grad_(False), nn.BatchNorm1d(2), nn.Linear(2, 2))

    def train_data(self, site: muster.Site) -> Dataset[Any]:
        return TensorDataset(torch.randn(EXAMPLES, 3), torch.arange(EXAMPLES) % 2)

    def fit(self, model: nn.Module, context: muster.FitContext) -> Any:
        return self.loop(self, model, context)


def unchanged(before: nn.Module) -> Callable[[nn.Module], None]:
    frozen = {name: value.clone() for name, value in before.state_dict().items() if name.startswith("0.")}

    def check(after: nn.Module) -> None:
        state = after.state_dict()
        if not all(torch.equal(state[name], value) for name, value in frozen.items()):
            raise TaskError("task.frozen_changed", "training changed a frozen parameter")

    return check


def tried(loop: Loop, task: Looped | None = None, **train: Any) -> FitTried:
    task = task or Looped(loop)
    site = muster.Site(name="ada")
    context = muster.FitContext(
        site=site,
        device=torch.device("cpu"),
        seed=3,
        train={"batch_size": BATCH, "epochs": 5, "steps": None, **train},
        progress=lambda _share: None,
    )
    model = task.model()
    return try_fit(task, model, task.train_data(site), context, who="a:Looped.fit", check=unchanged(model))


def step(task: Looped, model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def sound(task: Looped, model: nn.Module, context: muster.FitContext) -> muster.FitReport:
    data: Any = task.train_data(context.site)
    optimizer = torch.optim.SGD((each for each in model.parameters() if each.requires_grad), lr=0.1)
    steps = 0
    for _ in range(context.train["epochs"]):
        for batch in DataLoader(data, batch_size=context.train["batch_size"]):
            step(task, model, batch, optimizer)
            steps += 1
            task.history.append(steps)
    assert context.trial
    return muster.FitReport(examples=len(data), steps=steps)


def test_a_sound_loop_takes_one_step_on_copies_and_nothing_of_it_stays() -> None:
    task = Looped(sound)
    site = muster.Site(name="ada")
    data: Any = task.train_data(site)
    before = [tensor.clone() for tensor in data.tensors]
    found = tried(sound, task)
    assert found.ended and found.report == muster.FitReport(examples=BATCH, steps=1)
    assert task.history == []
    assert task.train_data(site) is data
    assert all(torch.equal(a, b) for a, b in zip(before, data.tensors, strict=True))


def test_a_run_that_counts_steps_says_one() -> None:
    def told(task: Looped, model: nn.Module, context: muster.FitContext) -> muster.FitReport:
        return muster.FitReport(examples=1, steps=context.train["steps"])

    report = tried(told, epochs=None, steps=500).report
    assert report is not None and report.steps == 1


def test_a_loop_that_leaves_training_to_the_algorithm_is_told_apart() -> None:
    found = tried(lambda task, model, context: None)
    assert (found.ended, found.report, found.told) == (True, None, "")


def raising(task: Looped, model: nn.Module, context: muster.FitContext) -> Any:
    raise KeyError("lr")


def misspelling(task: Looped, model: nn.Module, context: muster.FitContext) -> Any:
    report = sound(task, model, context)
    return muster.FitReport(example=report.examples, steps=report.steps)  # type: ignore[call-arg]


def thawing(task: Looped, model: nn.Module, context: muster.FitContext) -> Any:
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    return sound(task, model, context)


def other_loss(task: Looped, model: nn.Module, context: muster.FitContext) -> Any:
    for inputs, targets in DataLoader(task.train_data(context.site), batch_size=8):
        nn.functional.mse_loss(model(inputs), targets)


@pytest.mark.parametrize(
    ("loop", "error_id", "told"),
    [
        (raising, "task.failed", "fit raised KeyError: 'lr'"),
        (misspelling, "task.failed", "fit raised TypeError: "),
        (thawing, "task.frozen_changed", "frozen"),
        (other_loss, "task.failed", "fit raised RuntimeError: The size of tensor"),
        (lambda task, model, context: 5, "task.bad_report", "a:Looped.fit gave 5"),
        (
            lambda task, model, context: muster.FitReport(examples=-1, steps=1),
            "task.bad_report",
            "examples=-1",
        ),
    ],
    ids=["raises", "misspells", "thaws", "its loss", "no report", "no count"],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_what_is_wrong_with_a_loop_is_told(loop: Loop, error_id: str, told: str) -> None:
    with pytest.raises(TaskError) as caught:
        tried(loop)
    assert caught.value.id == error_id
    assert told in caught.value.message
    if error_id == "task.failed":
        assert caught.value.cause.startswith(f"{__file__}, line ")


def splitting(task: Looped, model: nn.Module, context: muster.FitContext) -> Any:
    random_split(task.train_data(context.site), [30, 10])
    return sound(task, model, context)


def dropping(task: Looped, model: nn.Module, context: muster.FitContext) -> Any:
    optimizer = torch.optim.SGD((each for each in model.parameters() if each.requires_grad), lr=0.1)
    for batch in DataLoader(task.train_data(context.site), batch_size=8, drop_last=True):
        step(task, model, batch, optimizer)
        last = batch
    return muster.FitReport(examples=len(last), steps=1)


@pytest.mark.parametrize("loop", [splitting, dropping])
def test_a_loop_that_needs_more_than_a_batch_has_all_data(loop: Loop) -> None:
    assert tried(loop).ended


def scoring(task: Looped, model: nn.Module, context: muster.FitContext) -> Any:
    report = sound(task, model, context)
    if report.steps < 50:
        raise ValueError("only one class is present")
    return report


def test_what_so_few_examples_may_be_the_cause_of_is_let_be() -> None:
    found = tried(scoring)
    assert not found.ended
    assert found.told == "it fails on so few examples, with ValueError: only one class is present"


def endless(signs: str) -> Loop:
    """One that has its examples from elsewhere, and whose own `except` lets nothing through."""

    def loop(task: Looped, model: nn.Module, context: muster.FitContext) -> Any:
        optimizer = torch.optim.Adam((each for each in model.parameters() if each.requires_grad), lr=0.1)
        while True:
            try:
                if signs == "steps":
                    step(task, model, (torch.randn(4, 3), torch.zeros(4, dtype=torch.long)), optimizer)
                else:
                    context.progress(0.5)
            except Exception:
                continue

    return loop


@pytest.mark.timeout(30)
@pytest.mark.parametrize("signs", ["steps", "progress"])
def test_a_loop_of_other_examples_is_stopped(monkeypatch: pytest.MonkeyPatch, signs: str) -> None:
    monkeypatch.setattr(fittrial, "STOP_SECONDS", 0.05)
    found = tried(endless(signs))
    assert not found.ended and found.told.startswith("it was stopped")
    # Nothing stops anybody's steps or batches afterwards.
    assert len([*DataLoader(TensorDataset(torch.ones(8)), batch_size=2)]) == 4
    parameter = nn.Parameter(torch.ones(1))
    torch.optim.SGD([parameter], lr=0.1).step()


class Locked(Looped):
    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.lock = threading.Lock()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        yield torch.ones(3)


class Streamed(Looped):
    def train_data(self, site: muster.Site) -> Dataset[Any]:
        return Stream()


@pytest.mark.parametrize(("kind", "told"), [(Locked, "'lock' cannot be copied"), (Streamed, "only once")])
def test_what_would_leave_a_trace_is_not_tried(kind: type[Looped], told: str) -> None:
    found = tried(raising, kind(raising))
    assert not found.ended and told in found.told
