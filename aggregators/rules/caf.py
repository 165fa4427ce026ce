"""A filter by the covariance, whatever its bound: rows that stretch it lose weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.core.distances import scaled_distances
from aggregators.core.options import counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule


@dataclass(frozen=True, kw_only=True)
class Caf(Rule):
    """A filter by the covariance, whatever its bound: rows that stretch it lose weight.

    z = the weighted mean mu that had the least greatest variance on the way of a filter.

    All weights c_i are 1 at first. While their sum is above n - 2f, take the weighted mean mu, the greatest
    eigenvalue of the weighted covariance and its direction v, and with t_i = <x_i - mu, v>^2 let
    c_i <- c_i (1 - t_i / max t). The max is over rows with c_i > 0, so each step empties one, and 2f steps
    are enough; with a max over all rows, one that is empty already can hold the filter up without end.
    Eigenvectors are exact, on n x n distances. Bound: n > 2f. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "caf", pre=(), faults=1).vector
    tensor([1.0014, 1.9735])
    """

    name: ClassVar[str] = "caf"
    source: ClassVar[str] = (
        "Allouah et al., Towards trustworthy federated learning with untrusted participants, ICML 2025"
    )
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.GRAM
    counts_faults: ClassVar[bool] = True
    score: ClassVar[str] = "what the filter left of its weight: 0 to 1"

    def mix(self, geometry: Geometry) -> Mix:
        n = geometry.n
        between, scale = scaled_distances(geometry)
        weights, least, steps = _filtered(between, geometry.finite, self.faults)
        treatment = tuple(
            f"kept {weight:.4g} of its weight" if weight else "filtered out" for weight in weights.tolist()
        )
        variance = (
            f", where the greatest variance in any direction was {least * scale**2:.4g}" if steps else ""
        )
        left = f"{int((weights > 0).sum())} of {counted(n, 'update')}"
        return Mix(
            matrix=(weights / weights.sum())[None, :],
            scores=weights,
            treatment=treatment,
            reason=f"weighted mean of {left} by {counted(steps, 'step')} of a filter{variance}",
        )


def _filtered(between: Tensor, finite: Tensor, faults: int) -> tuple[Tensor, float, int]:
    """The best weights [n], the greatest variance that they leave, and how many steps there were."""
    n = len(between)
    weights = finite.to(torch.float64)
    best, least = weights.clone(), torch.inf
    for step in range(2 * faults):
        active = (weights > 0).nonzero().flatten()
        if float(weights.sum()) <= n - 2 * faults:
            return best, least, step
        variance, ways = _stretched(between[active][:, active], weights[active])
        if variance < least:
            best, least = weights.clone(), variance
        longest = ways.abs().max()
        if longest == 0:  # all that is left stands on one point
            return best, least, step + 1
        weights[active] *= 1 - (ways / longest) ** 2
    return best, least, 2 * faults


def _stretched(between: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    """The greatest eigenvalue of the weighted covariance, and each row's way along its direction, in some unit."""
    shares = weights / weights.sum()
    reach = between @ shares
    centred = (reach[:, None] + reach[None, :] - between - shares @ reach) / 2  # <x_i - mu, x_j - mu>
    roots = shares.sqrt()
    values, vectors = torch.linalg.eigh(roots[:, None] * centred * roots[None, :])
    return max(float(values[-1]), 0.0), centred @ (roots * vectors[:, -1])
