"""Not a number, everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack


@dataclass(frozen=True, kw_only=True)
class Nan(Attack):
    """NaN in every coordinate: one such row makes NaN of a mean, and admission has to stop it."""

    name: ClassVar[str] = "nan"
    source: ClassVar[str] = "folklore"

    def _forge(self, honest: Tensor, out: Tensor) -> None:
        del honest
        out.fill_(torch.nan)
