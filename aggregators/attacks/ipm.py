"""Inner product manipulation, also called fall of empires (FoE)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.attacks.attack import Attack, Forgery, View
from aggregators.attacks.combination import Combination, mixture
from aggregators.attacks.search import Family, strongest
from aggregators.core.options import check_number


@dataclass(frozen=True, kw_only=True)
class Ipm(Attack):
    """Inner product manipulation: a little against the mean of the honest.

    -epsilon * mu, with mu the mean of the updates seen: small enough to pass for honest, yet against the
    descent.

    Raising epsilon turns the aggregate sooner and is easier to tell; 0.1 stays within most honest spreads.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("ipm", honest)
    tensor([-0.1000, -0.2000])
    """

    name: ClassVar[str] = "ipm"
    source: ClassVar[str] = "Xie et al., Fall of empires, UAI 2019"

    knobs: ClassVar[Mapping[str, str]] = {
        "epsilon": (
            "length in multiples of the honest mean's, above 0: raising it turns the aggregate "
            "sooner and is easier to tell"
        ),
    }

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.name, "epsilon", self.epsilon, positive=True)

    def _plan(self, view: View) -> Forgery:
        return mixture(-self.epsilon * view.mean)


@dataclass(frozen=True, kw_only=True)
class OptimalIpm(Attack):
    """Inner product manipulation, as far against the mean of the honest as does most harm.

    -epsilon * mu, with the epsilon from 0.01 to 1000 that does most harm to the pipeline.

    >>> import torch
    >>> from aggregators import build
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("optimal-ipm", honest, pipeline=build("median", faults=1))
    tensor([-0.0100, -0.0200])
    """

    name: ClassVar[str] = "optimal-ipm"
    source: ClassVar[str] = (
        "Xie et al., Fall of empires, UAI 2019, with the factor searched as in Shejwalkar and Houmansadr, "
        "Manipulating the Byzantine, NDSS 2021"
    )
    seen_min: ClassVar[int] = 2
    needs_pipeline: ClassVar[bool] = True

    def _plan(self, view: View) -> Forgery:
        return against_the_mean(view, low=1e-2, high=1e3)


def against_the_mean(view: View, *, low: float, high: float) -> Combination:
    """The strongest -t * mu, with t from `low` to `high`."""
    nothing = torch.zeros(view.rows + 1, dtype=torch.float64)
    along = nothing.clone()
    along[: view.rows] = -view.mean
    return strongest(view, Family(start=nothing, along=along, direction="mean", low=low, high=high))
