"""MASHA's server: extragradient whose half steps are compressed, see `compressors.feedback.masha`.

Its deltas are -F, the operator at the version that the round began with.

at an anchor  w = base;  slope = delta;  half = w + lr slope
else          z = base + lr (delta - slope), base being the last half step
              the next version is z itself where it is to be an anchor, else half = tau z + (1 - tau) w + lr slope

tau is `server.momentum`. Beznosikov et al. 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from compressors.feedback.masha import is_anchor
from exchange.optimizers.base import ServerOptimizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Masha(ServerOptimizer):
    """Extragradient with compressed half steps; `momentum` is tau, the chance that an anchor stays."""

    state_names: ClassVar[tuple[str, ...]] = ("anchor", "slope")

    lr: float = 1.0
    momentum: float = 0.9

    def step(self, base: Tensor, delta: Tensor, state: Mapping[str, Tensor], out: Tensor) -> None:
        anchor, slope = state["anchor"], state["slope"]
        lr, tau = self.lr, self.momentum
        if is_anchor(tau, self.version):
            anchor.copy_(base)
            slope.copy_(delta)
            torch.add(base, slope, alpha=lr, out=out)
            return
        torch.add(base, delta.sub_(slope), alpha=lr, out=out)
        if not is_anchor(tau, self.version + 1):
            torch.lerp(anchor, out, tau, out=out).add_(slope, alpha=lr)
