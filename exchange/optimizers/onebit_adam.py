"""1-bit Adam's server: Adam in the warm-up rounds, then a frozen second moment and the senders' own momenta.

warm-up   m = beta1 m + (1 - beta1) delta;  v = beta2 v + (1 - beta2) delta^2;  w += lr m / (sqrt(v) + tau)
then      w += lr delta / (sqrt(v) + tau)                     delta is a mean of momenta,
                                                              `compressors.feedback.local_momentum`

Tang et al. 2021. A coordinate whose v is zero at the end of the warm-up, such as the weight of a pixel that is always
black, never moves again: one bit cannot say 0, and would push it by lr scale / tau in every round. And no v counts for
less than a thousandth of the mean in its chunk.

From then on a step is a vector that stays as it is times the mean of momenta, so that the way down may be as coarse as
the way up: see `exchange.downlink`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from compressors.feedback.feedback import LOSSLESS
from exchange.optimizers.base import ServerOptimizer
from methods import Requirement, SpecValues, demand
from muster.spec.relations import short_warm_up

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 1e-3  # of the mean of v where it is not zero


@dataclass(frozen=True, kw_only=True)
class OneBitAdam(ServerOptimizer):
    """Adam while `warming_up`, then a frozen second moment."""

    state_names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")
    has_momentum: ClassVar[bool] = False  # after the warm-up it is the senders'
    learns_scale: ClassVar[bool] = True

    lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        """Its other end is the peers' feedback: neither works without the other."""
        table, rounds = spec["compression"], spec["rounds"]
        feedback = f"momentum:{self.beta1!r}"
        yield from demand(
            spec,
            f"onebit-adam needs compression.feedback {feedback}, of its own beta1",
            {"compression.feedback": feedback},
        )
        if table["up"] == LOSSLESS:
            yield Requirement(
                "onebit-adam takes what goes up without loss for its warm-up: compression.up sign, say",
                {"compression.up": "sign"},
            )
        if not table["warm_up_rounds"]:
            yield Requirement(
                "onebit-adam needs compression.warm_up_rounds, in which its second moment is learnt",
                {"compression.warm_up_rounds": short_warm_up(rounds)},
            )

    def step(self, base: Tensor, delta: Tensor, state: Mapping[str, Tensor], out: Tensor) -> Tensor | None:
        second = state["second_moment"]
        if self.warming_up:
            first = state["first_moment"].mul_(self.beta1).add_(delta, alpha=1 - self.beta1)
            second.mul_(self.beta2).addcmul_(delta, delta, value=1 - self.beta2)
            torch.sqrt(second, out=out).add_(self.tau)
            torch.div(first, out, out=out).mul_(self.lr).add_(base)
            return None
        scale = self._scale(second)
        torch.mul(delta, scale, out=out).add_(base)
        return scale

    def _scale(self, second: Tensor) -> Tensor:
        alive = second > 0
        floor = FLOOR * float(second.double().sum()) / max(1, int(alive.sum()))
        root = torch.clamp(second, min=floor).sqrt_().add_(self.tau)
        return alive.float().mul_(self.lr).div_(root)
