"""Noise in place of an update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aggregators.attacks.attack import Attack, Forgery, View
from aggregators.attacks.noise import fill
from aggregators.core.options import check_number


@dataclass(frozen=True, kw_only=True)
class _Noise(Forgery):
    mean: float
    std: float
    seed: int

    def forge(self, honest: Tensor, out: Tensor, start: int = 0) -> None:
        del honest
        fill(out, self.seed, start, lambda block, generator: block.normal_(generator=generator))
        out.mul_(self.std).add_(self.mean)


@dataclass(frozen=True, kw_only=True)
class Gaussian(Attack):
    """Noise in place of an update.

    Each coordinate drawn from N(mean, std^2), whatever the honest send; units of the update.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("gaussian", honest)
    tensor([-1.1258, -1.1524])
    """

    name: ClassVar[str] = "gaussian"
    source: ClassVar[str] = "Blanchard et al., Machine learning with adversaries, NeurIPS 2017"

    knobs: ClassVar[Mapping[str, str]] = {
        "mean": (
            "centre of each coordinate, in units of the update: away from 0 it pulls all coordinates one way"
        ),
        "std": (
            "standard deviation of each coordinate, in units of the update, above 0: more makes "
            "the update longer and easier to tell"
        ),
    }

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.name, "mean", self.mean)
        check_number(self.name, "std", self.std, positive=True)

    def _plan(self, view: View) -> Forgery:
        return _Noise(mean=self.mean, std=self.std, seed=view.seed)
