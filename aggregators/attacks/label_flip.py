"""Honest training on false labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack, Forgery, View
from aggregators.attacks.combination import mixture
from aggregators.core.options import RuleError


@dataclass(frozen=True, kw_only=True)
class LabelFlip(Attack):
    """Honest training on false labels.

    Trains on C - 1 - y in place of y; what lies outside 0 to C - 1, such as an ignored label, stays.

    What it sends is the mean of the updates seen, which are to be those so trained.

    >>> import torch
    >>> inputs, labels = LabelFlip().poison(torch.zeros(3, 1), torch.tensor([0, 1, 2]), classes=3)
    >>> labels
    tensor([2, 1, 0])
    """

    name: ClassVar[str] = "label-flip"
    source: ClassVar[str] = (
        "Tolpegin et al., Data poisoning attacks against federated learning systems, ESORICS 2020"
    )

    def poison(
        self, inputs: Tensor, targets: Tensor, classes: int, *, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        del seed
        check_classes(self.name, targets, classes)
        labels = (targets >= 0) & (targets < classes)
        return inputs, torch.where(labels, classes - 1 - targets, targets)

    def _plan(self, view: View) -> Forgery:
        return mixture(view.mean)


def check_classes(owner: str, targets: Tensor, classes: int) -> None:
    """Raises `RuleError` unless `targets` may be indices of two or more classes."""
    if classes < 2:
        raise RuleError(f"{owner} needs at least two classes, and there are {classes}")
    if targets.dtype.is_floating_point or targets.dtype.is_complex or targets.dtype == torch.bool:
        raise RuleError(f"{owner} needs class indices as targets, and they are {targets.dtype}")
