"""A task that hardly trains: a model of as many parameters as asked, so that only the round itself costs time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from muster import FitContext, FitReport, Site, Task


class Weights(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(size))


class Blank(Task):
    """`[task_options] size`: the number of parameters."""

    def model(self) -> nn.Module:
        return Weights(int(self.options["size"]))

    def train_data(self, site: Site) -> Dataset[Any]:  # the same nothing everywhere
        return TensorDataset(torch.zeros(1, 1))

    def fit(self, model: nn.Module, context: FitContext) -> FitReport:
        """One cheap pass, so that every version differs and has to travel."""
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.001)
        return FitReport(examples=1, steps=1)
