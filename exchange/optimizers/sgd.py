"""Plain averaging with a step size: w += lr * delta (FedAvg for lr = 1; McMahan et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from exchange.optimizers.base import ServerOptimizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sgd(ServerOptimizer):
    """w += lr * delta; keeps nothing."""

    has_momentum: ClassVar[bool] = False
    only_scales: ClassVar[bool] = True

    lr: float = 1.0

    def step(
        self, base: Tensor, delta: Tensor, state: Mapping[str, Tensor], out: Tensor
    ) -> None:  # stateless
        out.copy_(base).add_(delta, alpha=self.lr)
