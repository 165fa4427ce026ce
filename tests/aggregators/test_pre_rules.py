"""ARC, NNM and their compositions against plain loops over the rows."""

from __future__ import annotations

import math

import pytest
import torch

import aggregators


def arc(X, f):
    n = len(X)
    norms = [float(row.norm()) for row in X]
    limit = sorted(norms, reverse=True)[math.floor(2 * f * (n - f) / n)]
    return torch.stack(
        [row * min(1.0, limit / norm) if norm else row for row, norm in zip(X, norms, strict=True)]
    )


def nnm(X, f):
    n = len(X)
    rows = []
    for i in range(n):
        away = [(0 if j == i else 1, float(((X[i] - X[j]) ** 2).sum()), j) for j in range(n)]
        nearest = sorted(away, key=lambda entry: (entry[0], entry[1], entry[2]))
        rows.append(X[[j for _, _, j in nearest[: n - f]]].mean(dim=0))
    return torch.stack(rows)


REFERENCES = {"arc": arc, "nnm": nnm}
SHAPES = [(1, 0), (3, 1), (5, 2), (7, 2), (10, 3), (12, 5)]


@pytest.mark.parametrize(("n", "f"), SHAPES)
@pytest.mark.parametrize(
    "pre",
    [("arc",), ("nnm",), ("arc", "nnm"), ("nnm", "arc"), ("nnm", "nnm", "arc"), ("arc", "arc")],
    ids="-".join,
)
def test_compositions_by_definition(aggregate, n, f, pre):
    X = torch.randn(n, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    X[: n // 3] *= 20
    mixed = X
    for name in pre:
        mixed = REFERENCES[name](mixed, f)
    for rule, reference in (
        *((("mean", mixed.mean(dim=0)),) if "arc" in pre else ()),
        ("median", mixed.sort(dim=0).values[[(n - 1) // 2, n // 2]].mean(dim=0)),
        ("trimmed-mean", mixed.sort(dim=0).values[f : n - f].mean(dim=0)),
    ):
        assert torch.allclose(aggregate(X, rule, pre=pre, faults=f).vector, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_nnm_ties_go_to_itself_and_then_to_the_lowest(aggregate, seed):
    X = torch.randint(-1, 2, (8, 2), generator=torch.Generator().manual_seed(seed)).double()
    reference = nnm(X, 3).sort(dim=0).values[3:5].mean(dim=0)
    assert torch.allclose(aggregate(X, "trimmed-mean", pre=("nnm",), faults=3).vector, reference)


def test_a_duplicate_mixes_with_itself_before_its_twins(aggregate):
    # Five rows alike and three to take: each takes itself, then the lowest of the others.
    plan = aggregate(torch.ones(5, 2), "median", pre=("nnm",), faults=2).plan
    assert [round(float(weight) * 15) for weight in plan.weights] == [5, 5, 3, 1, 1]
    assert plan.treatment[4].startswith("is among the 3 nearest of 1 update;")


def test_krum_behind_nnm_measures_the_mixtures(aggregate):
    X = torch.randn(9, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    mixed = nnm(X, 2)
    composed = aggregate(X, "krum", pre=("nnm",), faults=2)
    alone = aggregate(mixed, "krum", faults=2)
    assert torch.allclose(composed.vector, alone.vector)
    assert composed.plan.scores.tolist() == pytest.approx(alone.plan.scores.tolist())
    # The winner is a mixture: its n - f rows share alike, and no other has a share.
    assert sorted(composed.plan.weights.tolist()) == pytest.approx([0, 0, *[1 / 7] * 7])
    assert composed.plan.selected == tuple(weight > 0 for weight in composed.plan.weights.tolist())


def test_geometric_median_behind_both(aggregate):
    X = torch.randn(9, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    X[0] *= 100
    composed = aggregate(X, "geometric-median", pre=("arc", "nnm"), faults=2).vector
    assert torch.allclose(composed, aggregate(nnm(arc(X, 2), 2), "geometric-median", faults=2).vector)


def test_what_was_done_is_told(aggregate):
    X = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    plan = aggregate(X, "mean", pre=("arc",), faults=1).plan
    assert plan.reason == "arc clipped 1 of 4 updates to norm 1, then mean of 4 updates, all alike"
    assert plan.treatment[0] == "clipped from norm 5 to 1; weighs 0.25 in the mean"
    assert plan.treatment[1] == "kept its norm of 1; weighs 0.25 in the mean"
    assert plan.weights.tolist() == pytest.approx([0.05, 0.25, 0.25, 0.25])


def test_without_faults_nothing_is_clipped_and_all_are_mixed(aggregate):
    X = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(aggregate(X, "mean", pre=("arc",)).vector, X.mean(dim=0))
    assert torch.allclose(aggregate(X, "krum", pre=("nnm",)).vector, X.mean(dim=0))


def test_zero_and_identical_rows(aggregate):
    zeros = torch.zeros(5, 3)
    row = torch.randn(1, 40, generator=torch.Generator().manual_seed(1))
    for rule in ("mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median"):
        assert not aggregate(zeros, rule, pre=("arc", "nnm"), faults=1).vector.any()
        same = aggregate(row.repeat(5, 1), rule, pre=("arc", "nnm"), faults=1).vector
        assert torch.allclose(same, row[0], rtol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median"])
@pytest.mark.parametrize("pre", [("arc",), ("nnm",), ("arc", "nnm"), ("nnm", "arc")], ids="-".join)
def test_rows_without_a_finite_norm_stay_out(aggregate, bad, rule, pre):
    X = torch.randn(9, 40, generator=torch.Generator().manual_seed(6))
    X[0], X[5] = bad, -bad
    if rule == "mean" and "arc" not in pre:
        with pytest.raises(aggregators.RuleError, match="put a pre-rule before it that clips"):
            aggregate(X, rule, pre=pre, faults=2)
        return
    result = aggregate(X, rule, pre=pre, faults=2)
    assert not result.plan.selected[0]
    assert not result.plan.selected[5]
    honest = X[[1, 2, 3, 4, 6, 7, 8]]
    assert float(result.vector.norm()) <= float(honest.norm(dim=1).max())


@pytest.mark.parametrize("name", ["arc", "nnm"])
def test_bounds(name):
    pipeline = aggregators.build("median", pre=(name,), faults=2)
    assert pipeline.refuse(5) is None
    assert pipeline.refuse(4) == f"{name} needs n > 2f: n is 4, f is 2"
