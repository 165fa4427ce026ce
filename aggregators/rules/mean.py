"""The weighted mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregators.core.options import counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule


@dataclass(frozen=True, kw_only=True)
class Mean(Rule):
    """The weighted mean.

    z = sum_i w_i x_i, with w_i >= 0 the caller's weights over their sum, or 1/n where none are given.

    A single faulty row moves it anywhere, and a declared weight is believed: for peers that are trusted, or
    behind a pre-rule. Cost: one pass.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "mean", pre=(), faults=0).vector
    tensor([ 2.6000, -0.2200])
    """

    name: ClassVar[str] = "mean"
    source: ClassVar[str] = "McMahan et al., Communication-efficient learning of deep networks, AISTATS 2017"
    breakdown: ClassVar[str] = "f = 0"
    needs: ClassVar[Needs] = Needs.WEIGHTS | Needs.HONESTY
    score: ClassVar[str] = "its weight, as a share of one"

    def mix(self, geometry: Geometry) -> Mix:
        shares = geometry.weights
        even = bool((shares == shares[0]).all())
        return Mix(
            matrix=shares[None, :],
            scores=shares,
            treatment=tuple(f"weighs {share:.4g} in the mean" for share in shares.tolist()),
            reason=f"mean of {counted(geometry.n, 'update')}, {'all alike' if even else 'by their weights'}",
        )
