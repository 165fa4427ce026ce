"""As far out as the honest are among themselves: no distance, or no sum of distances, gives it away.

The forged update is m = mu - gamma p. What the paper finds by halving gamma again and again has a closed
form: with r_i = mu - x_i, |m - x_i|^2 = |r_i|^2 - 2 gamma <r_i, p> + gamma^2 |p|^2, and both conditions are
quadratic in gamma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack, Forgery, View
from aggregators.attacks.combination import Direction, along, check_direction, extended_gram

_SOURCE = "Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021"


@dataclass(frozen=True, kw_only=True)
class _Bounded(Attack):
    """`direction` p is "std", the standard deviation of each coordinate, "sign", the signs of mu, or "mean"."""

    source: ClassVar[str] = _SOURCE
    seen_min: ClassVar[int] = 2

    knobs: ClassVar[Mapping[str, str]] = {
        "direction": (
            '"std", the standard deviation of each coordinate, "sign", the signs of the honest '
            'mean, or "mean", that mean: what the update is moved against'
        ),
    }

    direction: Direction = "std"

    def __post_init__(self) -> None:
        check_direction(self.name, self.direction)

    def _plan(self, view: View) -> Forgery:
        gram = extended_gram(view, self.direction)
        centre = torch.cat([view.mean, torch.zeros(1, dtype=torch.float64)])
        offsets = centre - torch.eye(view.rows, view.rows + 1, dtype=torch.float64)  # r_i as shares
        square = float(gram[-1, -1])
        gamma = 0.0
        if square > 0:
            products = offsets @ gram
            radii = (products * offsets).sum(dim=1).clamp(min=0)
            inner = gram[: view.rows, : view.rows]
            squares = inner.diagonal()
            distances = (squares[:, None] + squares[None, :] - 2 * inner).clamp(min=0)
            gamma = self._largest(radii, products[:, -1], square, distances)
        return along(view, self.direction, -gamma)

    def _largest(self, radii: Tensor, slopes: Tensor, square: float, distances: Tensor) -> float:
        """gamma, from |r_i|^2 [h], <r_i, p> [h], |p|^2 and the squared distances [h, h]; float64."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MinMax(_Bounded):
    """As far out as no distance to an honest update gives away.

    m = mu - gamma p, with the largest gamma for which max_i |m - x_i| <= max_ij |x_i - x_j|; mu is the mean of
    the updates seen, and p the `direction`.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("min-max", honest)
    tensor([0.6536, 1.6536])
    """

    name: ClassVar[str] = "min-max"

    def _largest(self, radii: Tensor, slopes: Tensor, square: float, distances: Tensor) -> float:
        room = (distances.max() - radii).clamp(min=0)
        return float((slopes + (slopes**2 + square * room).sqrt()).min()) / square


@dataclass(frozen=True, kw_only=True)
class MinSum(_Bounded):
    """As far out as the sum of its distances to the honest updates does not give away.

    m = mu - gamma p, with the largest gamma for which sum_i |m - x_i|^2 <= max_i sum_j |x_i - x_j|^2; mu is the
    mean of the updates seen, and p the `direction`.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("min-sum", honest)
    tensor([0.8000, 1.8000])
    """

    name: ClassVar[str] = "min-sum"

    def _largest(self, radii: Tensor, slopes: Tensor, square: float, distances: Tensor) -> float:
        del slopes  # the r_i sum to zero
        room = (distances.sum(dim=1).max() - radii.sum()).clamp(min=0)
        return float((room / (len(radii) * square)).sqrt())
