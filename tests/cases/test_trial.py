"""One batch is tried before anything is trained: what is wrong is told at once, by name, and nothing of it stays."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import muster
from muster.errors import TaskError
from muster.task import trial


class Plain(muster.Task):
    def __init__(self, model: Callable[[], nn.Module] = lambda: nn.Linear(4, 2)) -> None:
        self.make = model

    def model(self) -> nn.Module:
        return self.make()

    def train_data(self, site: muster.Site) -> Dataset[Any]:
        return pairs()


class Own(Plain):
    """With a loss that a test gives."""

    def __init__(self, found: Callable[[nn.Module, Any], Any], **more: Any) -> None:
        super().__init__(**more)
        self.found = found

    def loss(self, model: nn.Module, batch: Any) -> Any:
        return self.found(model, batch)


class Listed(Dataset[Any]):
    def __init__(self, *examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


def pairs(count: int = 6) -> TensorDataset:
    return TensorDataset(torch.ones(count, 4), torch.arange(count) % 2)


def tried(task: muster.Task, data: Dataset[Any] | None = None, **more: Any) -> float:
    return trial.try_loss(task, task.model(), trial.first_batch(data or pairs(), 4), **more)


def failure(task: muster.Task, data: Dataset[Any] | None = None) -> TaskError:
    with pytest.raises(TaskError) as caught:
        tried(task, data)
    return caught.value


def test_a_task_that_works_gives_its_first_loss() -> None:
    assert 0.0 < tried(Plain()) < 5.0


def frozen() -> nn.Module:
    return nn.Linear(4, 2).requires_grad_(False)


class Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "second"):
            self.second = nn.Linear(2, 2)
        return self.second(self.first(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "error_id", "told"),
    [
        (frozen, "task.nothing_to_train", "no parameters to train"),
        (nn.Flatten, "task.nothing_to_train", "no parameters to train"),
        (Growing, "task.growing_model", "'second.weight', 'second.bias'"),
        (lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), "task.growing_model", "'0.weight'"),
        (lambda: nn.Linear(5, 2), "task.failed", "float32 [4, 4], int64 [4]"),
    ],
)
def test_a_model_that_cannot_be_trained_is_named(
    model: Callable[[], nn.Module], error_id: str, told: str
) -> None:
    error = failure(Plain(model))
    assert error.id == error_id
    assert told in error.message


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ({"x": torch.ones(4), "y": 1}, "a dict of 2: 'x': float32 [3, 4], 'y': int64 [3]"),
        ((torch.ones(4), 1, 2), "a list of 3: float32 [3, 4], int64 [3], int64 [3]"),
        (("a text", 1), "a list of 2: a list of 3 str, int64 [3]"),
        ("a text", "a list of 3 str"),
        (torch.ones(4), "float32 [3, 4]"),
        ((torch.ones(4), {"label": 1}), "a list of 2: float32 [3, 4], a dict of 1: 'label': int64 [3]"),
    ],
)
def test_examples_of_a_form_that_the_default_loss_does_not_take_are_told(example: Any, told: str) -> None:
    error = failure(Plain(), Listed(example, example, example))
    assert error.id == "task.bad_examples"
    assert told in error.message
    assert "define loss" in error.fix


def test_examples_that_make_no_batch_are_told() -> None:
    error = failure(Plain(), Listed((torch.ones(4), 1), (torch.ones(5), 1)))
    assert error.id == "task.bad_examples"
    assert (
        "the first is a tuple of 2: float32 [4], a int, the second a tuple of 2: float32 [5]" in error.message
    )
    assert failure(Plain(), Listed((None, 1), (None, 1))).id == "task.bad_examples"


def scalar(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).square().mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda m, b: scalar(m, b).item(), "is a float and no tensor"),
        (lambda m, b: None, "is a NoneType and no tensor"),
        (lambda m, b: {"loss": scalar(m, b)}, "is a dict of 1: 'loss': float32 [] and no tensor"),
        (lambda m, b: m(b[0]).mean(1), "is a tensor of shape [4] and no scalar"),
        (lambda m, b: scalar(m, b).reshape(1), "is a tensor of shape [1] and no scalar"),
        (lambda m, b: scalar(m, b).detach(), "has no gradient"),
        (lambda m, b: scalar(m, b) * torch.nan, "is nan at the first batch"),
        (lambda m, b: scalar(m, b) / 0.0, "is inf at the first batch"),
        (
            lambda m, b: torch.ones((), requires_grad=True) * 2,
            "gives none of the trained parameters a gradient",
        ),
        (lambda m, b: (m(b[0]) * 0).sqrt().mean(), "a gradient that is not finite"),
    ],
)
def test_a_loss_that_is_no_loss_is_told(loss: Callable[[nn.Module, Any], Any], told: str) -> None:
    error = failure(Own(loss))
    assert error.id == "task.bad_loss"
    assert told in error.message
    assert "float32 [4, 4]" in error.message


def test_a_loss_that_raises_is_told_with_the_users_own_line() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return model(batch[0])[:, 7]

    error = failure(Own(loss))
    assert error.id == "task.failed"
    assert "the loss raised IndexError" in error.message
    assert error.cause.startswith(f"{__file__}, line ") and error.cause.endswith(", in loss")


def test_what_needs_no_gradient_is_not_asked_for_one() -> None:
    without = Own(lambda m, b: scalar(m, b).detach())
    assert tried(without, algorithm="spsa") > 0
    assert not trial.tries_loss(without, "an algorithm of somebody else's")


class Stateful(Plain):
    """Whatever it can remember, it remembers."""

    def __init__(self) -> None:
        super().__init__(
            lambda: nn.Sequential(
                nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Counting(), nn.Linear(4, 2)
            )
        )
        self.calls = 0

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        return super().loss(model, batch) * self.calls


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.register_buffer("hidden", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.hidden += 1.0
        return x * self.seen + self.hidden


class Noisy(Dataset[Any]):
    """Examples out of generators of its own."""

    def __init__(self) -> None:
        self.torch = torch.Generator().manual_seed(1)
        self.parts: Mapping[str, Any] = {
            "numpy": [np.random.default_rng(1), np.random.RandomState(1)],
            "python": random.Random(1),
        }

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        drawn = torch.rand(4, generator=self.torch)
        modern, old = self.parts["numpy"]
        return drawn + modern.random() + old.rand() + self.parts["python"].random(), index % 2


def test_nothing_of_a_trial_stays() -> None:
    def remembered() -> Any:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        own = {name: value.clone() for name, value in model.named_buffers()}
        counted = [module.seen for module in model.modules() if isinstance(module, Counting)]
        grads = [parameter.grad for parameter in model.parameters()]
        return state, own, counted, grads, task.calls, [each.training for each in model.modules()]

    def same(a: Any, b: Any) -> bool:
        states = all(torch.equal(a[i][name], b[i][name]) for i in (0, 1) for name in a[i])
        return states and a[2:] == b[2:] and a[0].keys() == b[0].keys()

    task, data = Stateful(), Noisy()
    model = task.model().eval()
    before, drawn = remembered(), Noisy()[0][0]
    trial.try_loss(task, model, trial.first_batch(data, 4))
    trial.try_evaluation(task, model, data)
    assert same(before, remembered())
    assert torch.equal(data[0][0], drawn)


LEAVES = (torch.ones(2, 0), torch.ones((), dtype=torch.bool), np.ones(3), "text", b"", None, 1, 2.5, object())


@given(
    st.recursive(
        st.sampled_from(LEAVES),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
            st.tuples(inner, inner),
        ),
        max_leaves=6,
    )
)
def test_every_form_can_be_told(value: Any) -> None:
    assert trial.form(value)
