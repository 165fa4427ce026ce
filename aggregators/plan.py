"""A decided aggregation, ready to be swept over the columns."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregators.rule import ColumnReducer


class Plan:
    """How n updates become one vector, and why. Everything but `reduce` is a figure to store and show.

    `scores` [n] float64: the rule's own figure for each update (its `score` says what it means; may be
    infinite). `weights` [n] float64: the share of each update in the result; of a rule that judges each
    coordinate, the share it has before that. `selected`: whether it has any. `treatment`: a sentence for each
    update. `reason`: a sentence. `reduce` reuses its scratch: one thread at a time.
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
    ) -> None:
        """`matrix` W [m, n] float64 (None: the identity) and `reducer` as a rule's `Mix` has them."""
        self.scores = scores
        self.weights = torch.full((n,), 1 / n, dtype=torch.float64) if matrix is None else matrix.mean(dim=0)
        self.treatment = treatment
        self.reason = reason
        used = torch.ones(n, dtype=torch.bool) if matrix is None else (matrix != 0).any(dim=0)
        self.selected: tuple[bool, ...] = tuple(used.tolist())
        self._n = n
        self._matrix = matrix
        self._reducer = reducer
        # No other row is ever read: it may hold NaN, and 0 * NaN is NaN.
        self._rows = used.nonzero().flatten()
        self._scratch: _Scratch | None = None

    def reduce(self, X: Tensor, out: Tensor) -> None:
        """Writes to `out` [c] the result for columns `X` [n, c], both float32 (or both float64).

        `X` is not changed, and rows without a share are not read. Chunks may come in any order and width.
        """
        if X.dim() != 2 or X.shape[0] != self._n or not X.dtype.is_floating_point:
            raise ValueError(f"a chunk of {self._n} rows of floats was due, not {tuple(X.shape)} {X.dtype}")
        if out.shape != X.shape[1:] or out.dtype != X.dtype:
            raise ValueError(f"room for {X.shape[1]} {X.dtype} was due, not {tuple(out.shape)} {out.dtype}")
        if self._scratch is None or self._scratch.dtype != X.dtype:
            self._scratch = _Scratch(X.dtype, self._matrix, self._rows, self._reducer)
        if self._reducer is None:
            self._sum(X, out, self._scratch.shares[0])
            return
        columns = self._reducer.columns
        for start in range(0, X.shape[1], columns):
            block = X[:, start : start + columns]
            width = block.shape[1]
            rows = block if self._matrix is None else self._mix(block, self._scratch)
            self._reducer.reduce(rows, self._scratch.reduce[:, :width], out[start : start + width])

    def _sum(self, X: Tensor, out: Tensor, shares: Tensor) -> None:
        """out = w @ X."""
        if len(self._rows) == self._n:
            torch.mv(X.T, shares, out=out)
            return
        out.zero_()
        for row, share in zip(self._rows.tolist(), shares.tolist(), strict=True):
            out.add_(X[row], alpha=share)

    def _mix(self, block: Tensor, scratch: _Scratch) -> Tensor:
        """W @ X for a block of columns, in the scratch."""
        width = block.shape[1]
        source = block
        if len(self._rows) < self._n:
            source = scratch.source[:, :width]
            torch.index_select(block, 0, self._rows, out=source)
        mixed = scratch.mixed[:, :width]
        torch.mm(scratch.shares, source, out=mixed)
        return mixed


class _Scratch:
    """What `reduce` needs for one type of data: W of the rows in use, and room for a block of columns."""

    def __init__(
        self, dtype: torch.dtype, matrix: Tensor | None, rows: Tensor, reducer: ColumnReducer | None
    ) -> None:
        mixed_rows = 0 if matrix is None else len(matrix)
        source_rows = 0 if matrix is None or len(rows) == matrix.shape[1] else len(rows)
        columns = 0 if reducer is None else reducer.columns
        self.dtype = dtype
        self.shares = torch.empty(0, 0, dtype=dtype) if matrix is None else matrix[:, rows].to(dtype)
        self.source = torch.empty(source_rows, columns, dtype=dtype)
        self.mixed = torch.empty(mixed_rows, columns, dtype=dtype)
        self.reduce = torch.empty(reducer.scratch_rows if reducer else 0, columns, dtype=dtype)
