"""How the tests run a pipeline: both passes over column chunks, exactly as a coordinator does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import aggregators


class Aggregate:
    """The result and the plan of one aggregation."""

    def __init__(self, X: Tensor, pipeline: aggregators.Pipeline, weights: Tensor | None, chunk: int) -> None:
        n, d = X.shape
        before = X.clone()
        survey = aggregators.Survey(pipeline, n, d)
        for start in range(0, d if survey.needed else 0, chunk):
            survey.add(start, X[:, start : start + chunk])
        self.plan = survey.plan(weights=weights)
        self.vector = torch.full((d,), 7.0, dtype=X.dtype)  # whatever was there must not show through
        for start in range(0, d, chunk):
            self.plan.reduce(X[:, start : start + chunk], self.vector[start : start + chunk])
        assert torch.equal(X.view(torch.uint8), before.view(torch.uint8)), "an input was changed"


@pytest.fixture(scope="session")
def aggregate() -> Callable[..., Aggregate]:
    def run(
        X: Tensor,
        rule: str,
        *,
        pre: tuple[str, ...] = (),
        faults: int = 0,
        weights: Tensor | None = None,
        chunk: int = 1 << 18,
        **options: Any,
    ) -> Aggregate:
        pipeline = aggregators.build(rule, pre=pre, faults=faults, options=options)
        return Aggregate(X, pipeline, weights, chunk)

    return run


@pytest.fixture(scope="session")
def kappa() -> Callable[[str, tuple[str, ...], int, int], float]:
    """The published constant of |F - mean of S|^2 <= kappa / |S| sum over S of |x_i - mean of S|^2."""

    def found(rule: str, pre: tuple[str, ...], n: int, f: int) -> float:
        ratio = f / (n - 2 * f)
        alone = {
            "median": 4 * (1 + ratio) ** 2,
            "geometric-median": 4 * (1 + ratio) ** 2,
            "trimmed-mean": 6 * ratio * (1 + ratio),
            "krum": 6 * (1 + ratio),
            "mda": 8 * f * f / (n - f),
            "mva": 4 * ratio,
            "smea": 4 * ratio,
        }[rule]
        return 8 * f / (n - f) * (1 + alone) if pre == ("nnm",) else alone

    return found
