"""Against the descent at the largest norm that a filter of norms lets through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregators.attacks.attack import Attack, Forgery, View
from aggregators.attacks.combination import extended_gram, mixture

_BELOW = 1 - 1e-4  # safely less than the norm that it hides behind, whatever was rounded


@dataclass(frozen=True, kw_only=True)
class AntiCge(Attack):
    """Against the descent, at the largest norm that a filter of norms lets through.

    -mu / |mu| times a little less than the f-th largest honest norm, with f the number of copies.

    A rule that drops the f largest norms (comparative gradient elimination) then drops f honest updates.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("anti-cge", honest)
    tensor([-1.0468, -2.0936])
    """

    name: ClassVar[str] = "anti-cge"
    source: ClassVar[str] = (
        "against Gupta, Liu and Vaidya, Byzantine fault-tolerant distributed machine learning with norm-based "
        "comparative gradient elimination, DSN-W 2021"
    )

    def _plan(self, view: View) -> Forgery:
        gram = extended_gram(view, "mean")
        norms = gram.diagonal().clamp(min=0).sqrt()
        accepted = norms[:-1].sort(descending=True).values[min(view.copies, view.rows) - 1]
        length = float(norms[-1])
        scale = _BELOW * float(accepted) / length if length > 0 else 0.0
        return mixture(-scale * view.mean)
