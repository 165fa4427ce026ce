"""FedAdam, FedYogi, FedAdagrad (Reddi et al. 2021, Algorithm 2), without bias correction, as published.

m = beta1 m + (1 - beta1) delta
v = beta2 v + (1 - beta2) delta^2                        Adam
v = v - (1 - beta2) delta^2 sign(v - delta^2)            Yogi
v = v + delta^2                                          Adagrad
w += lr m / (sqrt(v) + tau)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from exchange.optimizers.base import ServerOptimizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Adaptive(ServerOptimizer):
    """What the three have in common: two moments, and a step of the first over the root of the second."""

    state_names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    @abstractmethod
    def accumulate(self, second: Tensor, square: Tensor) -> None:
        """Folds delta^2 into the second moment, in place; `square` may be overwritten."""

    def step(self, base: Tensor, delta: Tensor, state: Mapping[str, Tensor], out: Tensor) -> None:
        first = state["first_moment"].mul_(self.beta1).add_(delta, alpha=1 - self.beta1)
        second = state["second_moment"]
        self.accumulate(second, torch.mul(delta, delta, out=delta))
        torch.sqrt(second, out=out).add_(self.tau)
        torch.div(first, out, out=out).mul_(self.lr).add_(base)


@dataclass(frozen=True, kw_only=True)
class Adam(Adaptive):
    """v = beta2 v + (1 - beta2) delta^2."""

    def accumulate(self, second: Tensor, square: Tensor) -> None:
        second.mul_(self.beta2).add_(square, alpha=1 - self.beta2)


@dataclass(frozen=True, kw_only=True)
class Yogi(Adaptive):
    """v = v - (1 - beta2) delta^2 sign(v - delta^2)."""

    def accumulate(self, second: Tensor, square: Tensor) -> None:
        sign = torch.sub(second, square).sign_()
        second.sub_(square.mul_(sign), alpha=1 - self.beta2)


@dataclass(frozen=True, kw_only=True)
class Adagrad(Adaptive):
    """v = v + delta^2."""

    def accumulate(self, second: Tensor, square: Tensor) -> None:
        second.add_(square)
