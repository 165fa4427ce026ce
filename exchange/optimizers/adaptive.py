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
from typing import TYPE_CHECKING, ClassVar

import torch

from exchange.optimizers.base import ServerOptimizer

if TYPE_CHECKING:
    from torch import Tensor


class Adaptive(ServerOptimizer):
    state_names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    @abstractmethod
    def accumulate(self, second: Tensor, square: Tensor) -> None:
        """Folds delta^2 into the second moment, in place; `square` may be overwritten."""

    def step(self, base: Tensor, delta: Tensor, state: Mapping[str, Tensor], out: Tensor) -> None:
        table = self.table
        first = state["first_moment"].mul_(table.beta1).add_(delta, alpha=1 - table.beta1)
        second = state["second_moment"]
        self.accumulate(second, torch.mul(delta, delta, out=delta))
        torch.sqrt(second, out=out).add_(table.tau)
        torch.div(first, out, out=out).mul_(table.lr).add_(base)


class Adam(Adaptive):
    def accumulate(self, second: Tensor, square: Tensor) -> None:
        second.mul_(self.table.beta2).add_(square, alpha=1 - self.table.beta2)


class Yogi(Adaptive):
    def accumulate(self, second: Tensor, square: Tensor) -> None:
        sign = torch.sub(second, square).sign_()
        second.sub_(square.mul_(sign), alpha=1 - self.table.beta2)


class Adagrad(Adaptive):
    def accumulate(self, second: Tensor, square: Tensor) -> None:
        second.add_(square)
