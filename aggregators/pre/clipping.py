"""Static clipping: no update is longer than a fixed norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.options import check_number, counted
from aggregators.core.rule import Geometry, Needs, PreMix, PreRule


@dataclass(frozen=True, kw_only=True)
class Clipping(PreRule):
    """Static clipping: no update is longer than a fixed norm.

    y_i = x_i min(1, c/|x_i|), written "clipping:2.0".

    No c is safe for all of a training: where honest updates become shorter than it, it does nothing, and where
    they are longer, it slows them; `arc` adapts. A row of infinite norm becomes zero. Bound: n > 2f.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "mean", pre="clipping", faults=1).vector
    tensor([1.0066, 1.1376])
    """

    name: ClassVar[str] = "clipping"
    source: ClassVar[str] = "common practice; compared with others in Allouah et al., ICLR 2025"
    breakdown: ClassVar[str] = "n > 2f"
    needs: ClassVar[Needs] = Needs.GRAM
    bounds_norms: ClassVar[bool] = True

    knobs: ClassVar[Mapping[str, str]] = {
        "c": (
            "the greatest norm, in units of the update, above 0. Raising it clips fewer updates, "
            "and leaves a faulty one longer"
        ),
    }

    c: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "c", self.c, positive=True)

    def mix(self, geometry: Geometry) -> PreMix:
        norms = geometry.norms
        clipped = norms > self.c
        factors = torch.ones(geometry.n, dtype=torch.float64)
        factors[clipped] = self.c / norms[clipped]
        return PreMix(
            matrix=factors.diag(),
            treatment=tuple(
                f"clipped from norm {norm:.4g} to {self.c:g}" if cut else f"kept its norm of {norm:.4g}"
                for norm, cut in zip(norms.tolist(), clipped.tolist(), strict=True)
            ),
            reason=f"clipping cut {int(clipped.sum())} of {counted(geometry.n, 'update')} to norm {self.c:g}",
        )
