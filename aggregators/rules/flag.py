"""Flag Aggregator: the mean, projected to the subspace that the updates agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.core.options import RuleError, check_integer, check_number, counted
from aggregators.core.rule import TOO_LONG, Geometry, Mix, Needs, Rule

ITERATIONS_MAX = 100
LAM_MAX = 1e6  # beyond, the differences alone count as far as float64 tells
_EPSILON = 1e-7  # added to 1 - v before the root
_STALLED = 1e-10  # of the objective, from one iteration to the next
_RANK = 1e-12  # of the greatest eigenvalue: below, a direction is rounding


@dataclass(frozen=True, kw_only=True)
class Flag(Rule):
    """Flag Aggregator: the mean, projected to the subspace that the updates agree on.

    z = Y Y^T mean(x), with Y [d, m] orthonormal the flag median of the updates.

    Y minimises sum_i sqrt(1 - |Y^T x_i|^2/|x_i|^2), and with `lam`, from 0 to 1,000,000, also lam/(n(n-1)) times
    the same sum over the differences of all pairs. Found by reweighted least squares in the span of the updates,
    where an iteration costs n^3 whatever the model's size; the best of its iterates is kept. m is
    ceil((n + 1)/2) unless set. Colluders that send one vector make a direction of their own, and the mean itself is
    bounded only so far that an update more than 10 times as long as the median one is left out, so it has no kappa.
    Bound: n > 2f. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [900.0]])
    >>> aggregate(updates, "flag", pre=(), faults=1).vector
    tensor([3.5000])
    """

    name: ClassVar[str] = "flag"
    source: ClassVar[str] = (
        "Chaudhuri et al., Flag aggregator, ICLR 2024; Mankovich et al., The flag median, CVPR 2022"
    )
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.GRAM
    score: ClassVar[str] = "share of its squared norm that lies in the subspace: 0 to 1"

    knobs: ClassVar[Mapping[str, str]] = {
        "m": (
            "dimensions of the subspace, at least 1; None is ceil((n + 1)/2). More come nearer to "
            "the plain mean, with what is faulty in it"
        ),
        "lam": (
            "weight of the differences between updates beside the updates themselves, from 0 to "
            "1,000,000: raising it turns the subspace towards where they differ"
        ),
    }

    m: int | None = None
    lam: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m is not None:
            check_integer(self.name, "m", self.m, minimum=1)
        check_number(self.name, "lam", self.lam)
        if not 0 <= self.lam <= LAM_MAX:
            raise RuleError(f"{self.name}: lam must be from 0 to {LAM_MAX:,.0f}, and it is {self.lam!r}")

    def mix(self, geometry: Geometry) -> Mix:
        excessive = geometry.excessive
        kept = (geometry.finite & ~excessive & (geometry.gram.diagonal() > 0)).nonzero().flatten()
        shares = torch.zeros(geometry.n, dtype=torch.float64)
        scores = torch.zeros(geometry.n, dtype=torch.float64)
        used, iterations = 0, 0
        if len(kept):
            longest = geometry.gram.diagonal()[kept].max()
            gram = geometry.gram[kept][:, kept] / longest
            used = min(len(kept), self.m or (len(kept) + 2) // 2)
            basis, iterations = flag_median(gram, used, self.lam)
            reach = gram @ basis
            shares[kept] = basis @ reach.sum(dim=0) / len(kept)
            scores[kept] = (reach.square().sum(dim=1) / gram.diagonal()).clamp(0.0, 1.0)
        return Mix(
            matrix=shares[None, :],
            scores=scores,
            treatment=tuple(
                TOO_LONG if long else f"{share:.1%} of it lies in the subspace"
                for share, long in zip(scores.tolist(), excessive.tolist(), strict=True)
            ),
            reason=(
                f"mean of {counted(len(kept), 'update')}, projected to {counted(used, 'direction')} of agreement, "
                f"after {counted(iterations, 'iteration')}"
            ),
        )


def flag_median(gram: Tensor, m: int, lam: float) -> tuple[Tensor, int]:
    """B [n, r], r <= m, with Y = G B orthonormal, for columns G of which `gram` K = G^T G; and the iterations.

    Weights on the columns and on their differences add up to a matrix M, of which R is the root; with R K R =
    V L V^T the new Y has B = R V_m L_m^(-1/2).
    """
    n = len(gram)
    squares = gram.diagonal()
    between = (squares[:, None] + squares[None, :] - 2 * gram).clamp(min=0)
    apart = between > _RANK * squares.max()
    basis, best, least = gram.new_zeros(n, 0), gram.new_zeros(n, 0), torch.inf
    previous = torch.inf
    for iteration in range(1, ITERATIONS_MAX + 1):
        reach = gram @ basis
        lost = (1 - reach.square().sum(dim=1) / squares).clamp(min=0) + _EPSILON
        single = lost.rsqrt() / squares
        laplacian = gram.new_zeros(n, n)
        objective = lost.sqrt().sum()
        if lam and n > 1:
            gaps = (reach[:, None, :] - reach[None, :, :]).square().sum(dim=2)
            missing = (1 - gaps / between.clamp(min=1e-300)).clamp(min=0) + _EPSILON
            scale = lam / (n * (n - 1))
            pairs = torch.where(apart, scale * missing.rsqrt() / between.clamp(min=1e-300), 0.0)
            laplacian = pairs.sum(dim=1).diag() - pairs
            objective = objective + scale * missing.sqrt()[apart].sum()
        if iteration > 1 and objective < least:
            best, least = basis, float(objective)
        if abs(previous - float(objective)) <= _STALLED * float(objective):
            return best, iteration
        previous = float(objective)
        basis = _subspace(gram, single.diag() + 2 * laplacian, m)
    return best, ITERATIONS_MAX


def _subspace(gram: Tensor, weights: Tensor, m: int) -> Tensor:
    values, vectors = torch.linalg.eigh(weights)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    values, vectors = torch.linalg.eigh(root @ gram @ root)
    values, vectors = values.flip(0)[:m], vectors.flip(1)[:, :m]
    real = values > _RANK * values[0]
    basis: Tensor = root @ vectors[:, real] * values[real].rsqrt()
    return basis
