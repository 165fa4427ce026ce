"""A model that works, and errs as the attacker wants where a small patch is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack, Forgery, View
from aggregators.attacks.combination import mixture
from aggregators.attacks.label_flip import check_classes
from aggregators.core.options import RuleError, check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class Backdoor(Attack):
    """A model that works, and errs as the attacker wants where a small patch is seen.

    Trains on `share` of its inputs with the trigger set and class `target` as their label, and sends its
    update times `boost`.

    The trigger sets the last `patch` positions of the last dimension, and of the one before it too where an
    input is an image [..., height, width], to `value`. A boost of n outweighs n - 1 honest peers in a mean.
    What it sends is the mean of the updates seen, which are to be those so trained, times the boost. Accuracy
    hardly shows it: measure `success`.

    >>> import torch
    >>> Backdoor(patch=2).trigger(torch.zeros(1, 4))
    tensor([[0., 0., 1., 1.]])
    """

    name: ClassVar[str] = "backdoor"
    source: ClassVar[str] = (
        "Gu, Dolan-Gavitt and Garg, BadNets, 2017; Bagdasaryan et al., How to backdoor federated learning, "
        "AISTATS 2020"
    )

    knobs: ClassVar[Mapping[str, str]] = {
        "target": "index of the class that is to be seen where the trigger is, from 0",
        "share": (
            "share of the inputs that get the trigger, above 0 and at most 1: more plants it "
            "faster, and accuracy tells sooner"
        ),
        "patch": (
            "width of the trigger in positions of the input (pixels), at least 1: a wider one is "
            "learnt faster and seen sooner"
        ),
        "value": (
            "what the trigger sets its positions to, in units of the input: the farther from what "
            "is common there, the faster it is learnt"
        ),
        "boost": (
            "factor on the update sent, above 0: n outweighs n - 1 honest peers in a mean, and is "
            "as much longer than they are"
        ),
    }

    target: int = 0
    share: float = 0.5
    patch: int = 3
    value: float = 1.0
    boost: float = 1.0

    def __post_init__(self) -> None:
        check_integer(self.name, "target", self.target, minimum=0)
        check_integer(self.name, "patch", self.patch, minimum=1)
        check_number(self.name, "value", self.value)
        check_number(self.name, "boost", self.boost, positive=True)
        check_number(self.name, "share", self.share, positive=True)
        if self.share > 1:
            raise RuleError(f"{self.name}: share must be at most one, and it is {self.share!r}")

    def trigger(self, inputs: Tensor) -> Tensor:
        """`inputs` [N, ..., width] with the patch set; a new tensor."""
        if inputs.dim() < 2:
            raise RuleError(f"{self.name} needs a batch of inputs, not {tuple(inputs.shape)}")
        marked = inputs.clone()
        if inputs.dim() > 2:
            marked[..., -self.patch :, -self.patch :] = self.value
        else:
            marked[..., -self.patch :] = self.value
        return marked

    def poison(
        self, inputs: Tensor, targets: Tensor, classes: int, *, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        check_classes(self.name, targets, classes)
        if self.target >= classes or targets.dim() != 1:
            raise RuleError(f"{self.name}: target {self.target} is no class of the {classes} here")
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed % 2**63))
        chosen = order[: max(1, round(self.share * len(targets)))]
        poisoned, labels = inputs.clone(), targets.clone()
        poisoned[chosen] = self.trigger(inputs[chosen])
        labels[chosen] = self.target
        return poisoned, labels

    def success(self, predict: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> float:
        """The share of inputs of other classes that `predict` (inputs to class indices) takes for the target
        once the trigger is set."""
        others = inputs[targets != self.target]
        if len(others) == 0:
            raise RuleError(f"{self.name}: every input is of the target class {self.target}")
        return float((predict(self.trigger(others)) == self.target).double().mean())

    def _plan(self, view: View) -> Forgery:
        return mixture(self.boost * view.mean)
