"""Local SGD: some epochs or steps of minibatch descent from the round's base (FedAvg's inner loop).

    w <- w - lr * g(w; batch)        repeated; the update is w - w_base

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017. The
step itself is torch's SGD (with momentum, if wanted) or AdamW; each round begins with a fresh optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import Dataset

from exchange.contribution import Contribution
from muster.seeds import derive_seed
from muster.task.evaluation import to_device
from muster.task.task import FitContext, FitReport, Task
from peer.training.batches import Batches
from peer.training.precision import Stepper

PROGRESS_CALLS_MAX = 50  # a round; more would only make work


@dataclass(frozen=True, kw_only=True)
class LocalSgd:
    """Reads lr, momentum, weight_decay, optimizer, epochs or steps, batch_size, clip_norm and precision from
    the run spec's `[train]`; has no options of its own."""

    name: ClassVar[str] = "sgd"
    asks_gradient: ClassVar[bool | None] = True

    def fit(self, task: Task, model: nn.Module, data: Dataset[Any], context: FitContext) -> Contribution:
        """Metric `loss`: the mean over the examples of the last pass, each before the step that used it."""
        train = context.train
        batches = Batches(data, train["batch_size"], derive_seed(context.seed, "batches"))
        total = train["steps"] or (train["epochs"] or 1) * batches.per_pass
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        stepper = Stepper(
            _optimizer(parameters, train),
            parameters,
            device=context.device,
            precision=train["precision"],
            clip_norm=train["clip_norm"],
        )
        model.train()
        done = 0
        stride = -(-total // PROGRESS_CALLS_MAX)
        loss, seen = torch.zeros((), dtype=torch.float32, device=context.device), 0
        while done < total:
            loss.zero_()
            seen = 0
            for batch, count in batches.one_pass():
                compute_loss = partial(task.loss, model, to_device(batch, context.device))
                loss += count * stepper.step(compute_loss)
                seen += count
                done += 1
                if done % stride == 0:
                    context.progress(done / total)
                if done == total:
                    break
        report = FitReport(examples=batches.examples, steps=total, metrics={"loss": float(loss) / seen})
        return Contribution.of(report)


def _optimizer(parameters: list[nn.Parameter], train: Mapping[str, Any]) -> Optimizer:
    if train["optimizer"] == "adamw":
        return AdamW(parameters, lr=train["lr"], weight_decay=train["weight_decay"])
    return SGD(parameters, lr=train["lr"], momentum=train["momentum"], weight_decay=train["weight_decay"])
