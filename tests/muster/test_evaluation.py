"""Evaluation against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import muster
from muster.task.evaluation import evaluate_classifier


class Plain(muster.Task):
    def model(self) -> nn.Module:
        return nn.Linear(4, 3)

    def train_data(self, site: muster.Site) -> Dataset[Any]:
        return TensorDataset()


class Squared(Plain):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return ((model(batch[0]) - batch[1]) ** 2).mean()


class Counting(nn.Linear):
    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.calls += 1
        return super().forward(input)


def data(count: int = 37) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator)


@pytest.mark.parametrize("batch_size", [1, 10, 37, 100])
def test_loss_and_accuracy_are_means_over_examples_whatever_the_batches(batch_size: int) -> None:
    inputs, targets = data()
    model = nn.Linear(4, 3)
    found = evaluate_classifier(Plain(), model, TensorDataset(inputs, targets), batch_size=batch_size)
    outputs = model(inputs).detach()
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, targets)), rel=1e-5)
    assert found["accuracy"] == int((outputs.argmax(1) == targets).sum()) / 37
    assert found["examples"] == 37


def test_the_model_is_asked_once_a_batch_and_left_as_it_was() -> None:
    model = Counting(4, 3)
    model.train()
    evaluate_classifier(Plain(), model, TensorDataset(*data(30)), batch_size=10)
    assert model.calls == 3
    assert model.training and not model._forward_hooks
    model.eval()
    evaluate_classifier(Plain(), model, TensorDataset(*data(30)))
    assert not model.training


def test_a_failing_loss_leaves_the_model_as_it_was() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(RuntimeError):
        evaluate_classifier(Plain(), model, TensorDataset(torch.zeros(5, 9), torch.zeros(5).long()))
    assert model.training and not model._forward_hooks


def test_regression_has_a_loss_and_no_accuracy() -> None:
    found = evaluate_classifier(
        Squared(), nn.Linear(4, 1), TensorDataset(torch.zeros(5, 4), torch.ones(5, 1))
    )
    assert set(found) == {"loss", "examples"}


def test_nothing_to_evaluate_on_gives_nothing() -> None:
    assert (
        evaluate_classifier(Plain(), nn.Linear(4, 3), TensorDataset(torch.zeros(0, 4), torch.zeros(0))) == {}
    )


class Sequence(Plain):
    """Outputs [batch, time, classes], as language models give them."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def test_accuracy_finds_the_classes_in_the_second_or_in_the_last_place() -> None:
    inputs, targets = torch.randn(6, 5, 4), torch.randint(0, 3, (6, 5))
    model = nn.Linear(4, 3)
    expected = float((model(inputs).argmax(-1) == targets).float().mean())
    last = evaluate_classifier(Sequence(), model, TensorDataset(inputs, targets))
    assert last["accuracy"] == pytest.approx(expected)

    class Turned(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            return model(batch).transpose(1, 2)

    second = evaluate_classifier(Plain(), Turned(), TensorDataset(inputs, targets))
    assert second["accuracy"] == pytest.approx(expected)


def test_a_task_evaluates_on_its_test_data_by_itself() -> None:
    class Tested(Plain):
        def test_data(self, site: muster.Site) -> Dataset[Any] | None:
            return TensorDataset(*data(8)) if site.name == "a" else None

    assert Tested().evaluate(nn.Linear(4, 3), muster.Site(name="a"))["examples"] == 8
    assert Tested().evaluate(nn.Linear(4, 3), muster.Site(name="b")) == {}
