"""The geometric median, by Weiszfeld's iteration on inner products alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.core.options import counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule

ITERATIONS_MAX = 1_000
_TOLERANCE = 1e-9  # of the gradient's norm, of which every row gives at most 1
_SAME = 1e-14  # two points are one if their squared distance is below this share of their own squared norms


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Rule):
    """The geometric median: the point of the least sum of distances to the updates.

    z = the point of the least sum of distances to the rows, to convergence.

    Every point on the way is z = sum_i w_i x_i with weights on the simplex, and

        |z - x_i|^2 = w^T K w - 2 (K w)_i + K_ii,

    so an iteration costs n^2, whatever the model's size. If 1,000 do not converge, the reason says so. Rows on
    one line may have many medians; then it is one of them. Bound: n > 2f, where
    kappa = 4 (1 + f/(n - 2f))^2. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "geometric-median", pre=(), faults=1).vector
    tensor([1.0059, 1.9038])
    """

    name: ClassVar[str] = "geometric-median"
    source: ClassVar[str] = "Weiszfeld 1937; where it meets a row: Vardi and Zhang, PNAS 97(4), 2000"
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.GRAM
    score: ClassVar[str] = "distance to the result"

    def mix(self, geometry: Geometry) -> Mix:
        kept = geometry.finite.nonzero().flatten()
        gram = geometry.gram[kept][:, kept]
        weights, iterations, left = weiszfeld(gram, geometry.distances[kept][:, kept])
        shares = torch.zeros(geometry.n, dtype=torch.float64)
        shares[kept] = weights
        scores = torch.full((geometry.n,), torch.inf, dtype=torch.float64)
        scores[kept] = _squares_to(gram, weights).sqrt()
        residual = (
            "" if left <= _TOLERANCE else f", not converged: a gradient of {left:.2g} an update is left"
        )
        after = f"after {counted(iterations, 'iteration')}{residual}"
        return Mix(
            matrix=shares[None, :],
            scores=scores,
            treatment=tuple(
                f"weighs {share:.4g}, at a distance of {score:.4g}"
                for share, score in zip(shares.tolist(), scores.tolist(), strict=True)
            ),
            reason=f"geometric median of {counted(len(kept), 'update')} {after}",
        )


def weiszfeld(gram: Tensor, between: Tensor) -> tuple[Tensor, int, float]:
    """Weights [n] of the geometric median of n points, the iterations it took, and what is left of the gradient
    there, as a share of n.

    `gram` K and the squared distances `between` are [n, n] float64. Only K enters the iteration: with z near
    the many, a far row has a weight like 1/distance, which cancels the rounding of its products with other
    rows, but not that of its squared distances.
    """
    at_row = _optimal_row(gram, between)
    if at_row is not None:
        return at_row, 0, 0.0
    weights = _start(between)
    iteration = 1
    while True:
        following, gradient = _step(gram, weights)
        left = gradient / len(gram)
        if left <= _TOLERANCE or iteration == ITERATIONS_MAX:
            return weights, iteration, left
        weights, iteration = following, iteration + 1


def _optimal_row(gram: Tensor, between: Tensor) -> Tensor | None:
    """Even weights on the rows that stand where the median is, if it is a row and the only median.

    Row k is, if the unit vectors from it to the rows elsewhere add up to a length R below the number of rows
    that stand upon it. With u_i = 1/|x_i - x_k|, but zero upon it, and s the sum of u,

        R^2 = |sum_i u_i (x_i - x_k)|^2 = u^T K u - 2 s (K u)_k + s^2 K_kk.
    """
    squares = gram.diagonal()
    upon = between <= _SAME * (squares[:, None] + squares[None, :])
    inverse = between.masked_fill(upon, torch.inf).rsqrt()
    reach = inverse @ gram
    mass = inverse.sum(1)
    pull = (reach * inverse).sum(1) - 2 * mass * reach.diagonal() + mass**2 * squares
    alone = pull.clamp(min=0).sqrt() < upon.sum(1) * (1 - 1e-6)
    if not bool(alone.any()):
        return None
    there = upon[int(alone.nonzero()[0])].to(gram.dtype)
    return there / there.sum()


def _start(between: Tensor) -> Tensor:
    """Even weights on the rows with a majority about as near as any has: far rows cannot move this start."""
    majority = between.kthvalue(len(between) // 2 + 1, dim=1).values
    central = (majority <= 4 * majority.min()).to(between.dtype)
    return central / central.sum()


def _step(gram: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """The next weights, and the norm of the gradient here (of the least subgradient, if upon a row)."""
    squares = _squares_to(gram, weights)
    own = gram.diagonal() + weights @ gram @ weights
    upon = squares <= _SAME * own
    inverse = squares.masked_fill(upon, torch.inf).rsqrt()
    mass = float(inverse.sum())
    if mass == 0:  # upon every row
        return weights, 0.0
    target = inverse / mass
    way = target - weights
    pull = mass * max(float(way @ gram @ way), 0.0) ** 0.5
    here = int(upon.sum())
    if here == 0:
        return target, pull
    stay = min(1.0, here / pull) if pull > 0 else 1.0
    return (1 - stay) * target + stay * weights, max(pull - here, 0.0)


def _squares_to(gram: Tensor, weights: Tensor) -> Tensor:
    """Squared distances [n] from the rows to sum_i w_i x_i."""
    reach = gram @ weights
    return (gram.diagonal() - 2 * reach + weights @ reach).clamp(min=0)
