"""SCAFFOLD: local steps corrected by control variates, so that peers with unlike data do not drift apart.

    y <- y - lr (g_i(y) - c_i + c)             K steps from the round's base w
    c_i' = c_i - c + (w - y) / (K lr)          kept at the peer
    c   <- c + sum_i (c_i' - c_i) / n          kept at the coordinator, comes down with the model

Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020 (option II). The
server's learning rate is `server.lr`; n, the option `peers`, is how many peers the run has, whether a round asks them
or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from exchange import ADD, F64, SUM, Contribution, Group, RoundContext
from muster import FitReport, Task
from muster.seeds import derive_seed
from muster.task.evaluation import to_device
from peer.training.batches import Batches

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Scaffold:
    """Reads lr, steps or epochs, and batch_size from `[train]`."""

    name: ClassVar[str] = "scaffold"
    groups: ClassVar[tuple[Group, ...]] = (Group(name="control", dtype=F64, fold=SUM, keep=ADD),)
    peers: int

    def __post_init__(self) -> None:
        if self.peers < 1:
            raise ValueError(f"peers is at least 1, not {self.peers}")

    def fit(self, task: Task, model: nn.Module, data: Dataset[Any], context: RoundContext) -> Contribution:
        train = context.train
        lr = train["lr"]
        batches = Batches(data, train["batch_size"], derive_seed(context.seed, "batches"))
        steps = train["steps"] or (train["epochs"] or 1) * batches.per_pass
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        server = {name: values.to(context.device) for name, values in context.received["control"].items()}
        own = {
            name: context.state[name].to(context.device) if context.state else torch.zeros_like(values)
            for name, values in server.items()
        }
        first = {name: p.detach().double().clone() for name, p in parameters.items()}
        model.train()
        loss, done = torch.zeros((), device=context.device), 0
        while done < steps:
            for batch, _ in batches.one_pass():
                compute = partial(task.loss, model, to_device(batch, context.device))
                loss = _step(compute, parameters, {name: server[name] - own[name] for name in own}, lr)
                done += 1
                context.progress(done / steps)
                if done == steps:
                    break
        new = {
            name: own[name] - server[name] + (first[name] - parameters[name].detach().double()) / (steps * lr)
            for name in own
        }
        return Contribution.of(
            FitReport(examples=batches.examples, steps=steps, metrics={"loss": float(loss)}),
            groups={"control": {name: (new[name] - own[name]) / self.peers for name in new}},
            state=new,
        )


def _step(compute: Any, parameters: dict[str, nn.Parameter], correction: Tensors, lr: float) -> Tensor:
    """One step along gradient and correction; gives the loss before it."""
    for parameter in parameters.values():
        parameter.grad = None
    loss: Tensor = compute()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    with torch.no_grad():
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=lr)
            if name in correction:  # what the run leaves to each peer has no control
                parameter.sub_(correction[name].to(parameter.dtype), alpha=lr)
    return loss.detach()
