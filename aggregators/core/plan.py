"""A decided aggregation, ready to be swept over the columns."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregators import kernels
from aggregators.core.rule import ColumnReducer


class Plan:
    """How n updates become one vector, and why. Everything but the sweeps is a figure to store and show.

    `scores` [n] float64: the rule's own figure for each update (its `score` says what it means; may be
    infinite). `weights` [n] float64: the share of each update in the result; of a rule that judges each
    coordinate, the share it has before that. `selected`: whether it has any. `treatment`: a sentence for each
    update. `reason`: a sentence. May be pickled, for whoever holds other columns.
    """

    def __init__(
        self,
        *,
        n: int,
        matrix: Tensor | None,
        reducer: ColumnReducer | None,
        scores: Tensor,
        treatment: tuple[str, ...],
        reason: str,
        kept: int = 0,
        state: Tensor | None = None,
    ) -> None:
        """`matrix` W [m, n + kept] float64 (None: the identity), `reducer` and `state` as `Mix` has them."""
        self.scores = scores
        self.treatment = treatment
        self.reason = reason
        self.rows = n + kept  # of the chunks that `reduce` and `advance` are due
        shares = torch.full((1, n), 1 / n, dtype=torch.float64) if matrix is None else matrix[:, :n]
        self.weights = shares.mean(dim=0)
        self.selected: tuple[bool, ...] = tuple((shares != 0).any(dim=0).tolist())
        self._reducer = reducer
        self._mixing = None if matrix is None else kernels.Mixing(matrix)
        self._n = n
        self._state = None if state is None else kernels.Mixing(state)

    @property
    def linear(self) -> bool:
        """Whether the result is `weights` @ X, and no more is done to each coordinate."""
        return self._reducer is None

    def reduce(self, X: Tensor, out: Tensor) -> None:
        """Writes to `out` [c] the result for columns `X` [n + kept, c], both float32 (or both float64).

        `X` is not changed, and rows without a share are not read. Chunks may come in any order and width.
        """
        self._check(X, out, 1)
        if self._reducer is not None:
            self._reducer.reduce(X if self._mixing else X[: self._n], out, self._mixing)
        elif self._mixing is not None:
            kernels.mix(X, out.unsqueeze(0), self._mixing)
        else:
            raise RuntimeError("a plan mixes its rows, or reduces them")

    def advance(self, X: Tensor, out: Tensor) -> None:
        """Writes to `out` [kept, c] the vectors to keep, for the columns `X` [n + kept, c]."""
        if self._state is None:
            raise ValueError("this plan keeps no vectors")
        self._check(X, out, self._state.m)
        kernels.mix(X, out, self._state)

    def _check(self, X: Tensor, out: Tensor, rows: int) -> None:
        if X.dim() != 2 or X.shape[0] != self.rows or not X.dtype.is_floating_point:
            raise ValueError(f"a chunk of {self.rows} rows of floats was due, not {tuple(X.shape)} {X.dtype}")
        if out.numel() != rows * X.shape[1] or out.shape[-1] != X.shape[1] or out.dtype != X.dtype:
            raise ValueError(f"room for {X.shape[1]} {X.dtype} was due, not {tuple(out.shape)} {out.dtype}")
