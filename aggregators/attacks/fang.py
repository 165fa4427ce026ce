"""Each coordinate just outside what the honest send, on the side that they move away from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack, Forgery, View
from aggregators.attacks.noise import fill
from aggregators.core.options import RuleError, check_number


@dataclass(frozen=True, kw_only=True)
class _Outside(Forgery):
    stretch: float
    seed: int

    def forge(self, honest: Tensor, out: Tensor, start: int = 0) -> None:
        fill(out, self.seed, start, lambda block, generator: block.uniform_(generator=generator))
        lowest, highest = torch.aminmax(honest, dim=0)
        # Away from zero up to stretch * edge, towards it up to edge / stretch; 0 stays, as in the paper.
        edge = torch.where(honest.mean(dim=0) > 0, lowest, highest)
        outward = torch.where(honest.mean(dim=0) > 0, -1.0, 1.0)
        away = edge * outward > 0
        reach = edge.abs() * torch.where(away, self.stretch - 1, 1 - 1 / self.stretch)
        out.mul_(reach).mul_(outward).add_(edge)


@dataclass(frozen=True, kw_only=True)
class Fang(Attack):
    """Each coordinate just outside what the honest send, on the side that they move away from.

    Where mu is positive a number between the least honest one and a little below, elsewhere between the
    greatest and a little above; a little is up to `stretch` times, or one `stretch`-th of, the edge.

    Aimed at rules that judge each coordinate alone, such as medians and trimmed means.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("fang", honest)
    tensor([0.6015, 1.1086])
    """

    name: ClassVar[str] = "fang"
    source: ClassVar[str] = (
        "Fang et al., Local model poisoning attacks to Byzantine-robust federated learning, USENIX Security 2020"
    )
    seen_min: ClassVar[int] = 2  # one update has no range

    knobs: ClassVar[Mapping[str, str]] = {
        "stretch": (
            "factor on the edge of the honest range up to which numbers are drawn, above 1: more "
            "does more harm and is easier to tell"
        ),
    }

    stretch: float = 2.0

    def __post_init__(self) -> None:
        check_number(self.name, "stretch", self.stretch, positive=True)
        if self.stretch <= 1:
            raise RuleError(f"{self.name}: stretch must be above one, and it is {self.stretch!r}")

    def _plan(self, view: View) -> Forgery:
        return _Outside(stretch=self.stretch, seed=view.seed)
