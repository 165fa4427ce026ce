"""Adaptive robust clipping: the longest updates are made as long as the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import counted
from aggregators.core.rule import Geometry, Needs, PreMix, PreRule


@dataclass(frozen=True, kw_only=True)
class Arc(PreRule):
    """Adaptive robust clipping: the longest updates are made as long as the next.

    y_i = x_i min(1, t/|x_i|), with t the (k + 1)-th greatest norm and k = floor(2 f (n - f)/n).

    It keeps the guarantee of a robust rule behind it, whatever the rule's kappa, and bounds what a faulty row
    can do where honest rows differ much. A row of infinite norm becomes zero. Bound: n > 2f.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "mean", pre="arc", faults=1).vector
    tensor([1.1311, 1.2489])
    """

    name: ClassVar[str] = "arc"
    source: ClassVar[str] = (
        "Allouah et al., Adaptive gradient clipping for robust federated learning, ICLR 2025"
    )
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.GRAM
    counts_faults: ClassVar[bool] = True
    bounds_norms: ClassVar[bool] = True

    def mix(self, geometry: Geometry) -> PreMix:
        n, f = geometry.n, self.faults
        norms = geometry.norms
        longest = 2 * f * (n - f) // n
        limit = norms.sort(descending=True).values[longest]
        clipped = norms > limit
        factors = torch.ones(n, dtype=torch.float64)
        factors[clipped] = limit / norms[clipped]
        treatment = tuple(
            f"clipped from norm {norm:.4g} to {float(limit):.4g}" if cut else f"kept its norm of {norm:.4g}"
            for norm, cut in zip(norms.tolist(), clipped.tolist(), strict=True)
        )
        reason = f"arc clipped {int(clipped.sum())} of {counted(n, 'update')} to norm {float(limit):.4g}"
        return PreMix(matrix=factors.diag(), treatment=treatment, reason=reason)
