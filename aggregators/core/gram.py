"""The Gram matrix of n rows that arrive as column chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregators import kernels
from aggregators.core.options import RuleError

LONGEST_KEPT = (
    1e18  # a vector that a rule keeps: its square, and that of its sum with an update, is finite in float32
)


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

    Raises `RuleError` if a row behind the first n is not finite: those are the caller's own.
    """
    inner = gram.clone()
    finite = inner.diagonal().isfinite()
    if not bool(inner[n:, n:].isfinite().all()):
        raise RuleError(
            "a vector that the rule kept from an earlier round is so long that its square is not finite: "
            "leave it out of the state, and it begins at zero again"
        )
    # Two finite norms have a finite product (Cauchy and Schwarz), but a partial sum may overflow before it.
    while bool((wrong := ~inner.isfinite() & finite[:, None] & finite[None, :]).any()):
        among = wrong.any(dim=1)
        among[n:] = False
        finite &= ~_longest(inner, among)
    inner[~finite] = 0.0
    inner[:, ~finite] = 0.0
    return inner, finite[:n]


def shortened(state: Tensor, gram: Tensor) -> Tensor:
    """`state` [s, m], each row scaled down as far as what it makes of m rows is longer than `LONGEST_KEPT`.

    `gram` [m, m] are the rows' inner products. What a rule keeps may be longer than any update, and must not
    overflow in the rounds to come.
    """
    longest = float(gram.diagonal().max())
    if longest <= 0:
        return state
    squares = ((state @ (gram / longest)) * state).sum(dim=1).clamp(min=0)
    share: Tensor = (LONGEST_KEPT / longest**0.5 / squares.sqrt()).clamp(max=1.0)
    return state * share[:, None]


def _longest(inner: Tensor, among: Tensor) -> Tensor:
    squares = inner.diagonal().masked_fill(~among, -1.0)
    return torch.arange(len(squares)) == squares.argmax()
