"""Forged updates that are a sum of the updates seen and one more row made of them.

Such an update is known by h + 1 numbers, so all that a rule may ask of it (norms, distances) follows from one
small Gram matrix, and a search among many such updates need not read the columns again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from aggregators.attacks.attack import Forgery, View
from aggregators.core.gram import Gram
from aggregators.core.options import RuleError

# The row behind the h updates: their standard deviation (of h - 1), the signs of their mean, or their mean.
Direction: TypeAlias = Literal["std", "sign", "mean"]


def check_direction(owner: str, value: object) -> None:
    """Raises `RuleError` unless `value` is a `Direction`."""
    known = get_args(Direction)
    if value not in known:
        raise RuleError(f"{owner}: direction must be one of {', '.join(known)}, and it is {value!r}")


def direction_row(honest: Tensor, direction: Direction) -> Tensor:
    """[c], from the columns `honest` [h, c]."""
    if direction == "std":
        return honest.std(dim=0, correction=1)
    mean = honest.mean(dim=0)
    return mean.sign() if direction == "sign" else mean


def extended(honest: Tensor, direction: Direction) -> Tensor:
    """[h + 1, c]: the columns with the row behind them."""
    return torch.cat([honest, direction_row(honest, direction).unsqueeze(0)])


def extended_gram(view: View, direction: Direction) -> Tensor:
    """[h + 1, h + 1] float64: the Gram matrix of the updates seen and the row behind them; one pass."""
    gram = Gram(view.rows + 1)
    for _, chunk in view.chunks():
        gram.add(extended(chunk, direction))
    return gram.matrix


def along(view: View, direction: Direction, factor: float) -> Combination:
    """mu + factor * direction."""
    return Combination(
        shares=torch.cat([view.mean, torch.tensor([factor], dtype=torch.float64)]), direction=direction
    )


@dataclass(frozen=True, kw_only=True)
class Combination(Forgery):
    """shares @ [x_1; ...; x_h; direction], with `shares` [h + 1] float64."""

    shares: Tensor
    direction: Direction = "mean"

    def forge(self, honest: Tensor, out: Tensor, start: int = 0) -> None:
        del start
        *shares, behind = self.shares.tolist()
        out.zero_()
        for row, share in zip(honest, shares, strict=True):
            if share:  # a row without a share is not read: it may hold NaN
                out.add_(row, alpha=share)
        if behind:
            out.add_(direction_row(honest, self.direction), alpha=behind)


def mixture(shares: Tensor) -> Combination:
    """A sum of the updates seen alone, with `shares` [h] float64."""
    return Combination(shares=torch.cat([shares, shares.new_zeros(1)]))
