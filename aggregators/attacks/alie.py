"""A little is enough: within the spread of the honest, at its edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.attacks.attack import Attack, Forgery, View
from aggregators.attacks.combination import along
from aggregators.attacks.search import Family, strongest
from aggregators.core.options import check_number


@dataclass(frozen=True, kw_only=True)
class Alie(Attack):
    """A little is enough: within the spread of the honest, at its edge.

    mu + z sigma in each coordinate, with the mean and the standard deviation (of h - 1) of the updates
    seen.

    A greater |z| does more harm and is easier to tell; z may be negative.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("alie", honest)
    tensor([1.3000, 2.3000])
    """

    name: ClassVar[str] = "alie"
    source: ClassVar[str] = "Baruch et al., A little is enough, NeurIPS 2019"
    seen_min: ClassVar[int] = 2  # one update has no spread

    knobs: ClassVar[Mapping[str, str]] = {
        "z": (
            "standard deviations of the honest, of either sign: a greater |z| does more harm and "
            "is easier to tell"
        ),
    }

    z: float = 1.5

    def __post_init__(self) -> None:
        check_number(self.name, "z", self.z)

    def _plan(self, view: View) -> Forgery:
        return along(view, "std", self.z)


@dataclass(frozen=True, kw_only=True)
class OptimalAlie(Attack):
    """A little is enough, at whatever share of the honest spread does most harm.

    mu + z sigma, with the z from 0.05 to 100, of either sign, that does most harm to the pipeline.

    >>> import torch
    >>> from aggregators import build
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("optimal-alie", honest, pipeline=build("median", faults=1))
    tensor([0.7276, 1.7276])
    """

    name: ClassVar[str] = "optimal-alie"
    source: ClassVar[str] = (
        "Baruch et al., A little is enough, NeurIPS 2019, with the factor searched as in Shejwalkar and "
        "Houmansadr, Manipulating the Byzantine, NDSS 2021"
    )
    seen_min: ClassVar[int] = 2
    needs_pipeline: ClassVar[bool] = True

    def _plan(self, view: View) -> Forgery:
        start = along(view, "std", 0.0).shares
        sigma = torch.zeros_like(start)
        sigma[-1] = 1.0
        return strongest(
            view,
            Family(start=start, along=sigma, direction="std", low=0.05, high=100.0, both_signs=True),
        )
