"""The Gram matrix of n rows that arrive as column chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregators import kernels


class Gram:
    """K = X X^T, summed over chunks of columns: one pass over the data, whatever the rules that read it.

    Sums over disjoint columns add up, so matrices of several shards of one model may simply be added. A row
    with a NaN or an infinity, or so large that its square overflows, spoils its own row and column of K and
    nothing else.

    >>> gram = Gram(2)
    >>> gram.add(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    >>> gram.matrix.tolist()
    [[5.0, 2.0], [2.0, 1.0]]
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"a Gram matrix needs at least one row, and n is {n}")
        self._n = n
        self._sum = torch.zeros(n, n, dtype=torch.float64)

    def add(self, X: Tensor) -> None:
        """Takes the columns of `X` [n, c], float32 or float64, in."""
        if X.dim() != 2 or X.shape[0] != self._n or not X.dtype.is_floating_point:
            raise ValueError(f"a chunk of {self._n} rows of floats was due, not {tuple(X.shape)} {X.dtype}")
        self._sum += kernels.gram(X)

    @property
    def matrix(self) -> Tensor:
        """[n, n] float64, exactly symmetric; a new tensor each time."""
        return self._sum.clone()


def sound(gram: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """A copy with zero in place of every row without a finite norm, and which of the first n are finite [n].

    Raises `ValueError` if a row behind the first n is not finite: those are the caller's own.
    """
    inner = gram.clone()
    finite = inner.diagonal().isfinite()
    # Two finite norms have a finite product (Cauchy and Schwarz), but a partial sum may overflow before it.
    while bool((wrong := ~inner.isfinite() & finite[:, None] & finite[None, :]).any()):
        among = wrong.any(dim=1)
        among[n:] = False
        finite &= ~_longest(inner, among)
    if not bool(finite[n:].all()):
        raise ValueError("a vector that is kept from round to round has no finite norm")
    inner[~finite] = 0.0
    inner[:, ~finite] = 0.0
    return inner, finite[:n]


def _longest(inner: Tensor, among: Tensor) -> Tensor:
    squares = inner.diagonal().masked_fill(~among, -1.0)
    return torch.arange(len(squares)) == squares.argmax()
