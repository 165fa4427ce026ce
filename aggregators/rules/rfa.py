"""RFA: a few steps towards the geometric median, each a weighted mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import RuleError, check_integer, check_number, counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule

NU_MIN = 1e-20  # a distance whose square float32 does not know


@dataclass(frozen=True, kw_only=True)
class Rfa(Rule):
    """RFA: a few steps towards the geometric median, each a weighted mean.

    z_0 = 0;  z <- sum_i w_i x_i / sum_i w_i with w_i = 1/max(nu, |z - x_i|), `steps` times.

    Each step needs a weighted sum alone, so that it may be taken where nothing else is seen; where the
    updates are seen, `geometric-median` is the point that this goes towards. nu is 1e-20 at least. Not
    invariant to translation, as it starts at zero. Bound: n > 2f. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "rfa", pre=(), faults=1).vector
    tensor([1.0945, 1.8673])
    """

    name: ClassVar[str] = "rfa"
    source: ClassVar[str] = "Pillutla, Kakade and Harchaoui, Robust aggregation for federated learning, 2022"
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.GRAM
    score: ClassVar[str] = "distance to the result"

    knobs: ClassVar[Mapping[str, str]] = {
        "nu": (
            "a distance in units of the update, at least 1e-20: no update weighs more for being "
            "nearer than this. Raising it goes from the geometric median to the mean"
        ),
        "steps": (
            "weighted means taken one after the other, at least 1: more end nearer to the geometric median"
        ),
    }

    nu: float = 0.1
    steps: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "nu", self.nu, positive=True)
        if self.nu < NU_MIN:
            raise RuleError(f"{self.name}: nu must be at least {NU_MIN:g}, and it is {self.nu!r}")
        check_integer(self.name, "steps", self.steps, minimum=1)

    def mix(self, geometry: Geometry) -> Mix:
        gram, squares = geometry.gram, geometry.gram.diagonal()
        shares = torch.zeros(geometry.n, dtype=torch.float64)
        for _ in range(self.steps):
            away = (squares - 2 * gram @ shares + shares @ gram @ shares).clamp(min=0).sqrt()
            weights = geometry.finite / away.clamp(min=self.nu)
            shares = weights / weights.sum()
        away = (squares - 2 * gram @ shares + shares @ gram @ shares).clamp(min=0).sqrt()
        scores = away.masked_fill(~geometry.finite, torch.inf)
        seen = counted(int(geometry.finite.sum()), "update")
        return Mix(
            matrix=shares[None, :],
            scores=scores,
            treatment=tuple(
                f"weighs {share:.4g}, at a distance of {score:.4g}"
                for share, score in zip(shares.tolist(), scores.tolist(), strict=True)
            ),
            reason=f"smoothed geometric median of {seen} after {counted(self.steps, 'step')}",
        )
