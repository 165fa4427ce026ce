"""A majority vote on the sign of each coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import counted
from aggregators.core.order_statistics import SignVote
from aggregators.core.rule import Geometry, Mix, Needs, Rule


@dataclass(frozen=True, kw_only=True)
class SignMajority(Rule):
    """A majority vote on the sign of each coordinate.

    z_k = sign(sum_i sign(x_ik)): -1, 0 (a tie, or all zero) or 1.

    The result has no length of its own: the server's learning rate is the step of every coordinate. Where
    honest data differ much the vote is biased. Bound: n > 2f; it has no kappa. Cost: one pass.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "sign-vote", pre=(), faults=1).vector
    tensor([1., 1.])
    """

    name: ClassVar[str] = "sign-vote"
    source: ClassVar[str] = "Bernstein et al., signSGD with majority vote, ICLR 2019"
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.NOTHING
    has_length: ClassVar[bool] = False
    score: ClassVar[str] = "none: it judges coordinates, not updates"

    def mix(self, geometry: Geometry) -> Mix:
        n = geometry.n
        return Mix(
            reducer=SignVote(n),
            scores=torch.zeros(n, dtype=torch.float64),
            treatment=("votes with the sign of each coordinate",) * n,
            reason=f"majority of the signs of {counted(n, 'update')} in each coordinate",
        )
