"""What an attack is."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.options import RuleError


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Falsifies the training targets (`poison`), the update (`forge`), or both; each does nothing unless
    overridden.

    All faulty peers of a round send the same update. `seen_min` is how many updates an attacker has to see; a
    peer that attacks alone sees its own.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    seen_min: ClassVar[int] = 1

    def poison(self, targets: Tensor, classes: int) -> Tensor:
        """The class indices to train on in place of `targets`, which are left as they are."""
        del classes
        return targets

    def forge(self, honest: Tensor, out: Tensor) -> None:
        """Writes to `out` [c] the update to send, for the columns `honest` [h, c] of the updates that are
        seen.

        Chunks may come in any order. Raises `RuleError` if h is below `seen_min`.
        """
        if honest.dim() != 2 or len(honest) < self.seen_min:
            raise RuleError(
                f"{self.name} has to see {self.seen_min} or more updates, not {tuple(honest.shape)}"
            )
        self._forge(honest, out)

    def _forge(self, honest: Tensor, out: Tensor) -> None:
        torch.mean(honest, dim=0, out=out)
