"""A mixing matrix, made ready for kernels and for torch."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Mixing:
    """W [m, n] of any float type. Rows of X without a share in W @ X are never read: 0 * NaN is NaN."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix.detach().cpu()
        self.m, self.n = matrix.shape

    @cached_property
    def used(self) -> list[int]:
        """The rows with a share."""
        return (self._matrix != 0).any(dim=0).nonzero().flatten().tolist()

    @cached_property
    def chosen(self) -> list[int] | None:
        """Which row of X each row of W @ X is, where W only chooses among them."""
        single = ((self._matrix != 0).sum(dim=1) == 1) & (self._matrix.sum(dim=1) == 1)
        return self._matrix.argmax(dim=1).tolist() if bool(single.all()) else None

    @cached_property
    def weights(self) -> Tensor:
        """[used, m] float32, contiguous: what a kernel reads."""
        return self._matrix[:, self.used].T.to(torch.float32).contiguous()

    def multiply(self, X: Tensor, out: Tensor) -> None:
        """out [m, c] = W @ X by torch."""
        if self.chosen is not None:
            torch.index_select(X, 0, torch.tensor(self.chosen, device=X.device), out=out)
            return
        shares = self._matrix[:, self.used].to(X.device, X.dtype)
        source = X if len(self.used) == self.n else X[self.used]
        torch.mm(shares, source, out=out)
