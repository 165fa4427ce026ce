"""FLTrust: every update is judged by its direction, against one that the server computed itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule

_SHORTEST = 1e-12  # of the root update's length: below, a direction is rounding


@dataclass(frozen=True, kw_only=True)
class FlTrust(Rule):
    """Every update is judged by its direction, against one that the server computed itself.

    z = sum_i t_i (|g| / |x_i|) x_i / sum_i t_i with t_i = max(0, cos(x_i, g)).

    g is the trusted row, the server's root update on clean data of its own; the x_i are the others, and g
    itself is not mixed. z is never longer than g. A row that is zero, or shorter than 1e-12 |g|, has no
    direction and t_i = 0; if all t_i are, z is zero. Bound: n > f and n > 1, g being one of the n: all
    others may be faulty, as far as g can be trusted. It has no kappa. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "fltrust", pre=(), faults=1, trusted=0).vector
    tensor([1.0153, 1.9803])
    """

    name: ClassVar[str] = "fltrust"
    source: ClassVar[str] = "Cao et al., FLTrust, NDSS 2021"
    breakdown: ClassVar[str] = "n > f and n > 1"
    needs: ClassVar[Needs] = Needs.GRAM | Needs.TRUSTED
    score: ClassVar[str] = "trust, the cosine with the root update where that is above zero: 0 to 1"

    def refuse(self, n: int) -> str | None:
        if n > max(self.faults, 1):
            return None
        return f"{self.name} needs n > f and n > 1: n is {n}, f is {self.faults}"

    def mix(self, geometry: Geometry) -> Mix:
        if geometry.trusted is None:
            raise RuntimeError("this geometry was made without a trusted row: declare Needs.TRUSTED")
        n, root = geometry.n, geometry.trusted
        norms = geometry.norms
        length = norms[root]
        judged = geometry.finite & (norms > _SHORTEST * length)
        judged[root] = False
        trust = torch.zeros(n, dtype=torch.float64)
        trust[judged] = (geometry.gram[root, judged] / norms[judged] / length).clamp(0.0, 1.0)
        total = trust.sum()
        shares = torch.zeros(n, dtype=torch.float64)
        trusted = trust > 0
        shares[trusted] = trust[trusted] / total * (length / norms[trusted])
        cosines = trust.tolist()
        treatment = [
            f"trusted by {trust:.4g} and scaled to the root update's norm"
            if trust
            else "left out: it does not point the root update's way"
            for trust in cosines
        ]
        treatment[root] = "the root update: it judges and is not mixed"
        scores = trust.clone()
        scores[root] = 1.0
        others = counted(n - 1, "update")
        reason = (
            f"mean, weighted by trust, of {int(trusted.sum())} of {others} at norm {float(length):.4g}"
            if bool(trusted.any())
            else f"zero, as none of {others} points the root update's way"
        )
        return Mix(matrix=shares[None, :], scores=scores, treatment=tuple(treatment), reason=reason)
