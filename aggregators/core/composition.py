"""How pre-rules and a rule add up to one mixing matrix, and which row represents which update at each step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from aggregators.core.plan import Plan
from aggregators.core.rule import Geometry, Mix, PreMix


class CompositionBuilder:
    """From n updates and `kept` vectors behind them, step by step, to the plan."""

    def __init__(self, n: int, kept: int) -> None:
        self._n = n
        self._kept = kept
        self._matrix: Tensor | None = None  # [m + kept, n + kept] so far
        self._row_of = torch.arange(n)  # which row stands for an update now
        self._clauses: list[tuple[str, ...]] = []
        self._reasons: list[str] = []

    def take(self, step: PreMix, geometry: Geometry) -> Geometry:
        """Adds a pre-rule's step to what it decided on; gives the geometry of the rows that it makes.

        K' = W K W^T. All of them are finite, as no lost row is in them. A trusted row is never mixed.
        """
        matrix = step.matrix
        if geometry.trusted is not None:
            matrix = matrix.clone()
            matrix[geometry.trusted] = 0.0
            matrix[geometry.trusted, geometry.trusted] = 1.0
        wide = self._widened(matrix)
        self._matrix = wide if self._matrix is None else wide @ self._matrix
        self._tell(step.treatment, step.reason)
        if step.stands_for is not None:
            self._row_of = step.stands_for[self._row_of]
        m = len(matrix)
        shares = geometry.weights if m == geometry.n else torch.full((m,), 1 / m, dtype=torch.float64)
        return replace(
            geometry,
            n=m,
            finite=torch.ones(m, dtype=torch.bool),
            weights=shares,
            inner=None if geometry.inner is None else wide @ geometry.inner @ wide.T,
            samples=None if geometry.samples is None else matrix @ geometry.samples @ matrix.T,
        )

    def finish(self, mix: Mix) -> Plan:
        self._tell(mix.treatment, mix.reason)
        present = None if self._matrix is None else self._matrix[: len(self._matrix) - self._kept]
        return Plan(
            n=self._n,
            kept=self._kept,
            matrix=present if mix.matrix is None else self._combined(mix.matrix),
            state=None if mix.state is None else self._combined(mix.state),
            reducer=mix.reducer,
            scores=mix.scores[self._row_of].clone(),
            treatment=tuple("; ".join(row) for row in zip(*self._clauses, strict=True)),
            reason=", then ".join(self._reasons),
        )

    def _widened(self, matrix: Tensor) -> Tensor:
        if self._kept == 0:
            return matrix
        (m, n), kept = matrix.shape, self._kept
        wide = torch.zeros(m + kept, n + kept, dtype=matrix.dtype)
        wide[:m, :n] = matrix
        wide[m:, n:] = torch.eye(kept, dtype=matrix.dtype)
        return wide

    def _combined(self, matrix: Tensor) -> Tensor:
        """`matrix` [k, m] or [k, m + kept] of the present rows, as one [k, n + kept] of the first ones."""
        if self._matrix is not None:
            return matrix @ self._matrix[: matrix.shape[1]]
        missing = self._n + self._kept - matrix.shape[1]
        return torch.nn.functional.pad(matrix, (0, missing)) if missing else matrix

    def _tell(self, treatment: tuple[str, ...], reason: str) -> None:
        self._clauses.append(tuple(treatment[row] for row in self._row_of.tolist()))
        self._reasons.append(reason)
