"""What is no number: NaN or infinity, everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack, Forgery, View


@dataclass(frozen=True, kw_only=True)
class _Constant(Forgery):
    value: float

    def forge(self, honest: Tensor, out: Tensor, start: int = 0) -> None:
        del honest, start
        out.fill_(self.value)


@dataclass(frozen=True, kw_only=True)
class Nan(Attack):
    """NaN in every coordinate.

    One such row makes NaN of a mean; admission has to stop it.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("nan", honest)
    tensor([nan, nan])
    """

    name: ClassVar[str] = "nan"
    source: ClassVar[str] = "folklore"

    def _plan(self, view: View) -> Forgery:
        del view
        return _Constant(value=torch.nan)


@dataclass(frozen=True, kw_only=True)
class Infinity(Attack):
    """Infinity in every coordinate.

    It sorts last where NaN spoils a sort; admission has to stop it.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("infinity", honest)
    tensor([inf, inf])
    """

    name: ClassVar[str] = "infinity"
    source: ClassVar[str] = "folklore"

    def _plan(self, view: View) -> Forgery:
        del view
        return _Constant(value=torch.inf)
