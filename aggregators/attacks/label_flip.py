"""Honest training on false labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack
from aggregators.options import RuleError


@dataclass(frozen=True, kw_only=True)
class LabelFlip(Attack):
    """Trains on C - 1 - y in place of y; what lies outside 0 to C - 1, such as an ignored label, stays.

    Its update is what the training gives: `forge` is the mean of the updates so trained.
    """

    name: ClassVar[str] = "label-flip"
    source: ClassVar[str] = (
        "Tolpegin et al., Data poisoning attacks against federated learning systems, ESORICS 2020"
    )

    def poison(self, targets: Tensor, classes: int) -> Tensor:
        if classes < 2:
            raise RuleError(f"{self.name} needs at least two classes, and there are {classes}")
        if targets.dtype.is_floating_point or targets.dtype.is_complex or targets.dtype == torch.bool:
            raise RuleError(f"{self.name} needs class indices as targets, and they are {targets.dtype}")
        labels = (targets >= 0) & (targets < classes)
        return torch.where(labels, classes - 1 - targets, targets)
