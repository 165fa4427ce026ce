"""Server momentum: m = beta m + delta, then w += lr m (FedAvgM; Hsu et al. 2019), or Nesterov's look-ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from exchange.optimizers.base import ServerOptimizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Momentum(ServerOptimizer):
    """m = momentum m + delta; w += lr m."""

    state_names: ClassVar[tuple[str, ...]] = ("momentum",)

    lr: float = 1.0
    momentum: float = 0.9

    def step(self, base: Tensor, delta: Tensor, state: Mapping[str, Tensor], out: Tensor) -> None:
        momentum = state["momentum"].mul_(self.momentum).add_(delta)
        out.copy_(base).add_(momentum, alpha=self.lr)


@dataclass(frozen=True, kw_only=True)
class Nesterov(ServerOptimizer):
    """w += lr (delta + beta m), with m already holding this round's delta (as in torch.optim.SGD(nesterov=True))."""

    state_names: ClassVar[tuple[str, ...]] = ("momentum",)

    lr: float = 1.0
    momentum: float = 0.9

    def step(self, base: Tensor, delta: Tensor, state: Mapping[str, Tensor], out: Tensor) -> None:
        momentum = state["momentum"].mul_(self.momentum).add_(delta)
        out.copy_(base).add_(delta, alpha=self.lr).add_(momentum, alpha=self.lr * self.momentum)
