"""Divide and conquer: what stands out along the direction of the greatest variance is dropped, draw by draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.core.options import RuleError, check_integer, check_number, counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule, Sampling


@dataclass(frozen=True, kw_only=True)
class Dnc(Rule):
    """Divide and conquer: what stands out along the direction of the greatest variance is dropped.

    z = the mean of the rows that no draw drops.

    Each of `draws` draws looks at `coordinates` coordinates, takes the mean of the n rows away, finds the
    direction of the greatest variance and drops the floor(c f) rows with the greatest squared share in it.
    If that leaves no row, those that were kept by the most draws are taken, where a published code would
    give zero. With `coordinates` 0 there is one draw of all coordinates, by the inner products of the rows.
    More draws or coordinates find more and drop more; so does c, which is 1 at least: as many as f may be faulty.

    What is wrong in a few coordinates only, a draw may miss; the inner products of all coordinates are asked
    for too, since they tell which rows are not finite. Ties keep the lowest rows. Bound: n > 2f and
    floor(c f) < n. It has no kappa. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "dnc", pre=(), faults=1).vector
    tensor([1.0000, 1.9750])
    """

    name: ClassVar[str] = "dnc"
    source: ClassVar[str] = "Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021"
    breakdown: ClassVar[str] = "n > 2f and n > c f"
    needs: ClassVar[Needs] = Needs.GRAM | Needs.SAMPLES
    counts_faults: ClassVar[bool] = True
    score: ClassVar[str] = (
        "its greatest share, over the draws, of the variance along the worst direction: 0 to 1"
    )

    knobs: ClassVar[Mapping[str, str]] = {
        "draws": (
            "draws of coordinates, at least 1: more find more, drop more updates, and cost as much each"
        ),
        "coordinates": (
            "coordinates a draw looks at; 0 is all of them, in one draw. More find what is wrong "
            "in a few only, and cost more"
        ),
        "c": (
            "updates dropped by a draw, in multiples of f, at least 1: raising it drops more of "
            "the faulty and of the honest"
        ),
    }

    draws: int = 5
    coordinates: int = 10_000
    c: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self.name, "draws", self.draws, minimum=1)
        check_integer(self.name, "coordinates", self.coordinates, minimum=0)
        check_number(self.name, "c", self.c)
        if self.c < 1:
            raise RuleError(
                f"{self.name}: c must be at least 1, or fewer than f are dropped, and it is {self.c!r}"
            )

    @property
    def sampling(self) -> Sampling | None:
        return Sampling(draws=self.draws, coordinates=self.coordinates) if self.coordinates else None

    @property
    def _dropped(self) -> int:
        # 1.15 times 100 is just below 115, and 1e308 times 100 is no number to round.
        return floor(min(self.c * self.faults, 1e9) + 1e-9)

    def refuse(self, n: int) -> str | None:
        if n <= self._dropped:
            return f"{self.name} needs n > c f: n is {n}, c is {self.c:g}, f is {self.faults}"
        return super().refuse(n)

    def mix(self, geometry: Geometry) -> Mix:
        n = geometry.n
        products = geometry.gram[None] if geometry.samples is None else geometry.samples
        present = geometry.finite.nonzero().flatten()
        shares = torch.full((len(products), n), torch.inf, dtype=torch.float64)
        shares[:, present] = _shares(products[:, present][:, :, present])
        kept = torch.zeros(len(products), n, dtype=torch.long)
        kept.scatter_(1, shares.sort(dim=1, stable=True).indices[:, : n - self._dropped], 1)
        counts = kept.sum(dim=0).masked_fill(~geometry.finite, 0)
        most = int(counts.max())
        taken = counts == most
        draws = len(products)
        matrix = torch.zeros(1, n, dtype=torch.float64)
        matrix[0, taken] = 1 / int(taken.sum())
        treatment = tuple(
            f"{'taken' if own else 'left out'}: kept by {count} of {draws} draws"
            for own, count in zip(taken.tolist(), counts.tolist(), strict=True)
        )
        which = "by every draw" if most == draws else f"by {most} of {draws} draws, as none is by all"
        return Mix(
            matrix=matrix,
            scores=shares.amax(dim=0),
            treatment=treatment,
            reason=f"mean of the {counted(int(taken.sum()), 'update')} of {n} kept {which}",
        )


def _shares(products: Tensor) -> Tensor:
    """Each row's share [draws, m] of the variance along the direction where that is greatest."""
    longest = products.diagonal(dim1=1, dim2=2).amax(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    scaled = products / longest[:, None, None]
    means = scaled.mean(dim=2, keepdim=True)
    centred = scaled - means - means.mT + means.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred)
    worst: Tensor = vectors[:, :, -1]
    return worst.square().masked_fill(values[:, -1:] <= 0, 0.0)
