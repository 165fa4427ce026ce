"""Drawing a model from a seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from muster.model.initial import draw
from muster.task.task import Site, Task


class Drawn(Task):
    def train_data(self, site: Site) -> Dataset[Any]:
        raise NotImplementedError


class Orthogonal(Drawn):
    """Its values come out otherwise with each number of threads that torch computes with."""

    def model(self) -> nn.Module:
        layer = nn.Linear(600, 600)
        nn.init.orthogonal_(layer.weight)
        return layer


class Broken(Drawn):
    def model(self) -> nn.Module:
        raise RuntimeError("no such layer")


def test_a_model_is_the_same_whatever_the_number_of_cores() -> None:
    usual = torch.get_num_threads()
    drawn: list[bytes] = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            (weight, _) = draw(Orthogonal(), 3).parameters()
            drawn.append(weight.detach().numpy().tobytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(usual)
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_drawing_that_fails_leaves_the_threads_as_they_were() -> None:
    usual = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no such layer"):
        draw(Broken(), 3)
    assert torch.get_num_threads() == usual
