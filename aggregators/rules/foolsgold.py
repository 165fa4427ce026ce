"""FoolsGold: peers whose updates have always looked alike share one peer's weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.core.gram import shortened
from aggregators.core.options import counted
from aggregators.core.rule import TOO_LONG, Geometry, Mix, Needs, Rule

_UNLIKE_LEAST = 1e-4  # of 1 - cos, which float32 knows to some 1e-6


@dataclass(frozen=True, kw_only=True)
class FoolsGold(Rule):
    """Peers whose updates have always looked alike share one peer's weight.

    z = sum_i a_i x_i / sum_i a_i, with a_i from the likeness of the peers' histories h_i, this round's x_i
    included.

        c_ij = cos(h_i, h_j), c_ii = 0;  m_i = max_j c_ij;  where m_i < m_j: c_ij <- c_ij m_i/m_j
        a = 1 - max_j c_ij, clipped to [0, 1];  a <- a / max a, with 1 made 0.99
        a <- ln(a/(1 - a)) + 1/2, clipped to [0, 1]

    Where max a is below 1e-4, a is divided by that instead: among peers that all look alike, what is left of a
    is rounding.

    Against many peers of one liar (sybils) alone: honest peers with the same data are taken for sybils, and of norms it
    bounds only that an update more than 10 times as long as the median one has no weight. If nobody has any weight,
    the result is zero. It keeps a vector for each peer, no longer than 1e18: a longer history is scaled down to that,
    which its cosines do not feel.
    Bound: none, as it counts no faults; it has no kappa. Cost: twice two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [5.0, 5.0]])
    >>> aggregate(updates, "foolsgold", pre=(), faults=1).vector
    tensor([0.5000, 0.5000])
    """

    name: ClassVar[str] = "foolsgold"
    source: ClassVar[str] = (
        "Fung, Yoon and Beschastnikh, The limitations of federated learning in sybil settings, RAID 2020"
    )
    breakdown: ClassVar[str] = "sybils only"
    needs: ClassVar[Needs] = Needs.GRAM | Needs.STATE | Needs.KEYS
    score: ClassVar[str] = "its weight before it is made a share: 0 is like another peer, 1 is like none"

    def state_names(self, keys: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"history/{key}" for key in keys)

    def refuse(self, n: int) -> str | None:
        if n > self.faults:
            return None
        return f"{self.name} needs n > f: n is {n}, f is {self.faults}"

    def mix(self, geometry: Geometry) -> Mix:
        n = geometry.n
        unit = torch.eye(n, dtype=torch.float64)
        present = unit * geometry.finite
        following = torch.cat([present, unit], dim=1)  # h_i + x_i, or h_i of a row that is not finite
        inner = geometry.extended / geometry.extended.diagonal().max().clamp(
            min=torch.finfo(torch.float64).tiny
        )
        excessive = geometry.excessive
        scores = foolsgold_weights(following @ inner @ following.T) * (geometry.finite & ~excessive)
        total = scores.sum()
        shares = scores / total if total > 0 else scores
        return Mix(
            matrix=shares[None, :],
            state=shortened(following, geometry.extended),
            scores=scores,
            treatment=tuple(
                _treated(share, long) for share, long in zip(shares.tolist(), excessive.tolist(), strict=True)
            ),
            reason=(
                f"mean of {counted(n, 'update')}, weighted by how unlike their histories are"
                if total > 0
                else f"zero, as each of {n} peers' histories is like another's"
            ),
        )


def _treated(share: float, excessive: bool) -> str:
    if excessive:
        return TOO_LONG
    return f"weighs {share:.4g}" if share else "left out: its history is like another peer's"


def foolsgold_weights(gram: Tensor) -> Tensor:
    """[n] from 0 to 1, of the histories' inner products [n, n]."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    alike = gram / (norms[:, None] * norms[None, :]).clamp(min=torch.finfo(torch.float64).tiny)
    alike.fill_diagonal_(0.0)
    most = alike.max(dim=1).values
    # A peer less alike to all than its like is pardoned in proportion.
    pardoned = (most[:, None] < most[None, :]) & (most[None, :] > 0)
    alike = torch.where(pardoned, alike * most[:, None] / most[None, :].clamp(min=1e-300), alike)
    weights = (1 - alike.max(dim=1).values).clamp(0.0, 1.0)
    weights = (weights / weights.max().clamp(min=_UNLIKE_LEAST)).clamp(max=0.99)
    return ((weights / (1 - weights)).log() + 0.5).clamp(0.0, 1.0)
