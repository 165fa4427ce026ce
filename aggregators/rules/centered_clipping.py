"""Centered clipping: updates count only so far from where the last round's result was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregators.core.gram import shortened
from aggregators.core.options import check_integer, check_number, counted
from aggregators.core.rule import Geometry, Mix, Needs, Rule

CENTER = "center"


@dataclass(frozen=True, kw_only=True)
class CenteredClipping(Rule):
    """Updates count only so far from where the last round's result was.

    v <- v + (1/n) sum_i (x_i - v) min(1, tau/|x_i - v|), `steps` times; z = v, which the next round starts at.

    v starts at zero in the first round. tau bounds what one faulty row can do, by tau/n a step, and how fast
    the honest rows can pull: it should be about the distance between honest updates of one round, which only
    the task knows. A row of infinite norm counts as v. From a v longer
    than 1e18 the next round starts at that length. Bound: n > 2f. Cost: two passes.

    >>> import torch
    >>> from aggregators import aggregate
    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [1.0, 1.9], [9.0, -9.0]])
    >>> aggregate(updates, "centered-clipping", pre=(), faults=1).vector
    tensor([2.2142, 0.1658])
    """

    name: ClassVar[str] = "centered-clipping"
    source: ClassVar[str] = "Karimireddy, He and Jaggi, Learning from history, ICML 2021"
    breakdown: ClassVar[str] = "n > 2f, with tau about the honest spread"
    needs: ClassVar[Needs] = Needs.GRAM | Needs.STATE
    score: ClassVar[str] = "distance to the result"

    knobs: ClassVar[Mapping[str, str]] = {
        "tau": (
            "a distance in units of the update, above 0: an update farther than this from the "
            "last result counts only so far. Raising it follows the honest faster, and lets a "
            "faulty one pull by tau/n a step"
        ),
        "steps": (
            "clipped means taken one after the other, at least 1: more come nearer to the honest, "
            "and a faulty one pulls as often"
        ),
    }

    tau: float = 10.0
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "tau", self.tau, positive=True)
        check_integer(self.name, "steps", self.steps, minimum=1)

    def state_names(self, keys: Sequence[str]) -> tuple[str, ...]:
        del keys  # one for all of them
        return (CENTER,)

    def mix(self, geometry: Geometry) -> Mix:
        n, gram = geometry.n, geometry.extended
        squares = gram.diagonal()[:n]
        center = torch.zeros(n + 1, dtype=torch.float64)  # as shares of the rows and of the last v
        center[n] = 1.0
        factors = torch.ones(n, dtype=torch.float64)
        for _ in range(self.steps):
            away = self._away(gram, squares, center)
            factors = torch.where(geometry.finite, (self.tau / away).clamp(max=1.0), 0.0)
            center = center * (1 - factors.sum() / n)
            center[:n] += factors / n
        scores = self._away(gram, squares, center).masked_fill(~geometry.finite, torch.inf)
        clipped = f"{int((factors < 1).sum())} of {counted(n, 'update')}"
        return Mix(
            matrix=center[None, :],
            state=shortened(center[None, :], gram),
            scores=scores,
            treatment=tuple(
                f"counts to {factor:.4g} of its distance" if factor < 1 else "counts in full"
                for factor in factors.tolist()
            ),
            reason=f"{clipped} clipped to {self.tau:g} around the last result",
        )

    @staticmethod
    def _away(gram: torch.Tensor, squares: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
        reach = gram @ center
        return (squares - 2 * reach[: len(squares)] + center @ reach).clamp(min=0).sqrt()
