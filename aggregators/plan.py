"""A decided aggregation, ready to be swept over the columns."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregators.rule import ColumnReducer

_MIXED_VALUES = 1 << 18  # of W @ X at a time: 1 MiB of float32, the size of a core's second-level cache


class Plan:
    """How n updates become one vector, and why. Everything but the sweeps is a figure to store and show.

    `scores` [n] float64: the rule's own figure for each update (its `score` says what it means; may be
    infinite). `weights` [n] float64: the share of each update in the result; of a rule that judges each
    coordinate, the share it has before that. `selected`: whether it has any. `treatment`: a sentence for each
    update. `reason`: a sentence. The sweeps reuse their scratch: one thread at a time.
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
        self._mixer = None if matrix is None else _Mixer(matrix)
        self._rows = n
        self._state = None if state is None else _Mixer(state)

    @property
    def linear(self) -> bool:
        """Whether the result is `weights` @ X, and no more is done to each coordinate."""
        return self._reducer is None

    def reduce(self, X: Tensor, out: Tensor) -> None:
        """Writes to `out` [c] the result for columns `X` [n + kept, c], both float32 (or both float64).

        `X` is not changed, and rows without a share are not read. Chunks may come in any order and width.
        """
        self._check(X, out, 1)
        if self._reducer is None:
            if self._mixer is None:
                raise RuntimeError("a plan mixes its rows, or reduces them")
            self._mixer.mix(X, out.unsqueeze(0))
            return
        if self._mixer is None:
            self._reducer.reduce(X[: self._rows], out)
            return
        columns = max(1, _MIXED_VALUES // self._mixer.m // 16 * 16)
        for start in range(0, X.shape[1], columns):
            block = X[:, start : start + columns]
            rows = self._mixer.scratch(block)
            self._mixer.mix(block, rows)
            self._reducer.reduce(rows, out[start : start + columns])

    def advance(self, X: Tensor, out: Tensor) -> None:
        """Writes to `out` [kept, c] the vectors to keep, for the columns `X` [n + kept, c]."""
        if self._state is None:
            raise ValueError("this plan keeps no vectors")
        self._check(X, out, self._state.m)
        self._state.mix(X, out)

    def _check(self, X: Tensor, out: Tensor, rows: int) -> None:
        if X.dim() != 2 or X.shape[0] != self.rows or not X.dtype.is_floating_point:
            raise ValueError(f"a chunk of {self.rows} rows of floats was due, not {tuple(X.shape)} {X.dtype}")
        if out.numel() != rows * X.shape[1] or out.shape[-1] != X.shape[1] or out.dtype != X.dtype:
            raise ValueError(f"room for {X.shape[1]} {X.dtype} was due, not {tuple(out.shape)} {out.dtype}")


class _Mixer:
    """W @ X without reading the rows that have no share: they may hold NaN, and 0 * NaN is NaN."""

    def __init__(self, matrix: Tensor) -> None:
        self.m = len(matrix)
        used = (matrix != 0).any(dim=0).nonzero().flatten()
        self._whole = len(used) == matrix.shape[1]
        self._used = used
        self._shares = matrix[:, used]
        # Rows that are only chosen, each as it is, are copied: exact, and cheaper.
        chosen = ((self._shares != 0).sum(dim=1) == 1) & (self._shares.sum(dim=1) == 1)
        self._chosen = used[self._shares.argmax(dim=1)] if bool(chosen.all()) else None
        self._cast: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._scratch: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def scratch(self, block: Tensor) -> Tensor:
        """Room for W @ block."""
        return self._room("mixed", self.m, block)

    def mix(self, X: Tensor, out: Tensor) -> None:
        """out [m, c] = W @ X."""
        if self._chosen is not None:
            torch.index_select(X, 0, self._chosen.to(X.device), out=out)
            return
        key = (X.dtype, X.device)
        shares = self._cast.get(key)
        if shares is None:
            shares = self._cast[key] = self._shares.to(X.device, X.dtype)
        if self.m == 1:
            self._sum(X, out[0], shares[0])
            return
        source = X
        if not self._whole:
            source = self._room("source", len(self._used), X)
            torch.index_select(X, 0, self._used.to(X.device), out=source)
        torch.mm(shares, source, out=out)

    def _sum(self, X: Tensor, out: Tensor, shares: Tensor) -> None:
        if self._whole:
            torch.mv(X.T, shares, out=out)
            return
        out.zero_()
        for row, share in zip(self._used.tolist(), shares.tolist(), strict=True):
            out.add_(X[row], alpha=share)

    def _room(self, name: str, rows: int, like: Tensor) -> Tensor:
        """[rows, columns of `like`], contiguous, in memory that is used again."""
        key = (name, like.dtype, like.device)
        width = like.shape[1]
        held = self._scratch.get(key)
        if held is None or held.numel() < rows * width:
            held = self._scratch[key] = torch.empty(rows * width, dtype=like.dtype, device=like.device)
        return held[: rows * width].view(rows, width)
