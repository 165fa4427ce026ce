"""The opposite of what the honest send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from aggregators.attacks.attack import Attack, Forgery, View
from aggregators.attacks.combination import mixture
from aggregators.attacks.ipm import against_the_mean
from aggregators.core.options import check_number


@dataclass(frozen=True, kw_only=True)
class SignFlip(Attack):
    """The opposite of what the honest send.

    -scale * mu, with mu the mean of the updates seen.

    The scale is 1 unless set; with 10, one such peer in five turns a mean backwards.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("sign-flip", honest)
    tensor([-1., -2.])
    """

    name: ClassVar[str] = "sign-flip"
    source: ClassVar[str] = (
        "Allen-Zhu et al., Byzantine-resilient non-convex stochastic gradient descent, ICLR 2021"
    )

    knobs: ClassVar[Mapping[str, str]] = {
        "scale": (
            "length in multiples of the honest mean's, above 0: raising it does more harm and is "
            "easier to tell"
        ),
    }

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.name, "scale", self.scale, positive=True)

    def _plan(self, view: View) -> Forgery:
        return mixture(-self.scale * view.mean)


@dataclass(frozen=True, kw_only=True)
class OptimalSignFlip(Attack):
    """The opposite of what the honest send, made as long as does most harm.

    -scale * mu, with the scale from 1 to 1000 that does most harm to the pipeline: never a small one.

    >>> import torch
    >>> from aggregators import build
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("optimal-sign-flip", honest, pipeline=build("median", faults=1))
    tensor([-1., -2.])
    """

    name: ClassVar[str] = "optimal-sign-flip"
    source: ClassVar[str] = SignFlip.source
    seen_min: ClassVar[int] = 2
    needs_pipeline: ClassVar[bool] = True

    def _plan(self, view: View) -> Forgery:
        return against_the_mean(view, low=1.0, high=1e3)
