"""Smallest-maximum-eigenvalue averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.core.subsets import SubsetRule, masks

_POWER_STEPS = 6
_AT_ONCE = 256  # subsets
_ROUNDING = 1e-9  # of an eigenvalue, at most
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, kw_only=True)
class Smea(SubsetRule):
    """Smallest-maximum-eigenvalue averaging: the mean of the n - f updates that vary least in any one direction.

    z = the mean of the n - f rows whose covariance has the least greatest eigenvalue.

    With D their squared distances and P the projection that takes the mean away, that is the greatest
    eigenvalue of -P D P / (2 (n - f)). A few power steps bound it from below for all subsets at once; where
    that does not decide, a Cholesky factor tells whether it is below the least so far, and only then is it
    found. The answer is exact. Bound: n > 2f, n <= 64 and C(n, f) <= 2,000,000, where kappa = 4f/(n - 2f),
    also with that eigenvalue in place of the variance. Ties go to the lowest rows.
    Cost: two passes, and for 20 updates of which 4 are faulty some 20 ms; at the bound, half a minute and 120 MB.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "smea", pre=(), faults=1).vector
    tensor([1.0000, 1.9750])
    """

    name: ClassVar[str] = "smea"
    source: ClassVar[str] = "Allouah et al., On the privacy-robustness-utility trilemma, ICML 2023"
    measure: ClassVar[str] = "greatest variance in any direction"

    def best(self, between: Tensor, out: Tensor) -> tuple[int, float]:
        bounds = torch.cat([_bounds(between, table) for _, table in masks(out, len(between))])
        order = bounds.argsort(stable=True)
        values = torch.full((len(out),), torch.inf, dtype=torch.float64)
        least = torch.inf
        for start in range(0, len(out), _AT_ONCE):
            part = order[start : start + _AT_ONCE]
            part = part[bounds[part] <= least * (1 + _ROUNDING)]
            if len(part) == 0:
                break
            covariances = _covariances(between, out[part])
            if least < torch.inf:
                better = _below(covariances, least * (1 + 2 * _ROUNDING))
                part, covariances = part[better], covariances[better]
            if len(part) > 0:
                values[part] = torch.linalg.eigvalsh(covariances)[:, -1].clamp(min=0)
                least = min(least, float(values[part].min()))
        return int((values <= least * (1 + _ROUNDING)).nonzero()[0]), least


def _bounds(between: Tensor, table: Tensor) -> Tensor:
    """A Rayleigh quotient of each kept subset's covariance [c], `table` [c, m] telling what is kept."""
    kept = table[0].sum()
    # Any start gives a bound; this one has no symmetry that a subset's eigenvectors might share.
    way = table * torch.arange(1, table.shape[1] + 1, dtype=torch.float64).sin()
    quotient = torch.zeros(len(table), dtype=torch.float64)
    for _ in range(_POWER_STEPS):
        way = way - table * (way.sum(dim=1, keepdim=True) / kept)
        way = way / way.abs().amax(dim=1, keepdim=True).clamp(min=_TINY)
        following = (way @ between) * table / -2
        rayleigh = (way * following).sum(dim=1) / (way * way).sum(dim=1).clamp(min=_TINY)
        quotient = torch.maximum(quotient, rayleigh)
        way = following
    return quotient / kept


def _covariances(between: Tensor, out: Tensor) -> Tensor:
    """[c, m - k, m - k]: the centred inner products of each kept subset over its size."""
    m, k = len(between), out.shape[1]
    mask = torch.ones(len(out), m, dtype=torch.bool).scatter_(1, out.long(), value=False)
    kept = mask.nonzero()[:, 1].view(len(out), m - k)
    squares = between[kept[:, :, None], kept[:, None, :]]
    means = squares.mean(dim=2, keepdim=True)
    return (means + means.mT - squares - means.mean(dim=1, keepdim=True)) / (2 * (m - k))


def _below(covariances: Tensor, limit: float) -> Tensor:
    """Where all eigenvalues are below `limit` [c]: there, and only there, the difference has a Cholesky factor."""
    differences = covariances.neg()
    differences.diagonal(dim1=1, dim2=2).add_(limit + _TINY)
    info: Tensor = torch.linalg.cholesky_ex(differences).info
    return info == 0
