"""MDA, MVA and SMEA against their definitions, by trying all subsets one after the other."""

from __future__ import annotations

import itertools
from math import comb
from pathlib import Path

import pytest
import torch

import aggregators
from aggregators.core.subsets import left_out, masks
from aggregators.rules import smea

RULES = ["mda", "mva", "smea"]


def diameter(S):
    return max((float((a - b).norm()) for a, b in itertools.combinations(S, 2)), default=0.0)


def variance(S):
    return float(((S - S.mean(dim=0)) ** 2).sum()) / len(S)


def greatest_variance(S):
    centred = S - S.mean(dim=0)
    return float(torch.linalg.eigvalsh(centred.T @ centred)[-1]) / len(S)


MEASURES = {"mda": diameter, "mva": variance, "smea": greatest_variance}


def taken(result):
    return [row for row, selected in enumerate(result.plan.selected) if selected]


def least(X, f, measure):
    n = len(X)
    return min(measure(X[list(subset)]) for subset in itertools.combinations(range(n), n - f))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "f"), [(1, 0), (4, 0), (3, 1), (5, 1), (5, 2), (7, 3), (8, 2), (9, 4)])
def test_by_definition(aggregate, rule, n, f, seed):
    generator = torch.Generator().manual_seed(100 * n + seed)
    X = torch.randn(n, 1 + 2 * seed, generator=generator, dtype=torch.float64)
    X[: f // 2] *= 10
    result = aggregate(X, rule, faults=f)
    chosen = taken(result)
    assert len(chosen) == n - f
    assert MEASURES[rule](X[chosen]) == pytest.approx(least(X, f, MEASURES[rule]), abs=1e-9)
    assert torch.allclose(result.vector, X[chosen].mean(dim=0))
    assert result.plan.weights.tolist() == pytest.approx([(i in chosen) / (n - f) for i in range(n)])
    assert result.plan.scores.tolist() == pytest.approx((X - result.vector).norm(dim=1).tolist(), abs=1e-7)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(8))
def test_by_definition_with_ties_and_duplicates(aggregate, rule, seed):
    X = torch.randint(-1, 2, (9, 2), generator=torch.Generator().manual_seed(seed)).double()
    chosen = taken(aggregate(X, rule, faults=3))
    assert MEASURES[rule](X[chosen]) == pytest.approx(least(X, 3, MEASURES[rule]), abs=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_the_reason_tells_the_measure(aggregate, rule):
    X = torch.tensor([[0.0, 0], [3, 4], [1, 0], [90, 90]]).double()
    result = aggregate(X, rule, faults=1)
    words = {"mda": "diameter", "mva": "variance", "smea": "greatest variance in any direction"}[rule]
    value = MEASURES[rule](X[:3])
    assert result.plan.reason == f"mean of the 3 updates of 4 with the least {words}, {format(value, '.4g')}"
    assert result.plan.treatment[3].startswith("left out, at a distance of 125.4 from")
    assert result.plan.treatment[0].startswith("taken, at a distance of 1.88")


def test_ties_go_to_the_lowest_rows(aggregate):
    twins = torch.tensor([[5.0], [1.0], [1.0], [1.0], [1.0]]).double()
    for rule in RULES:
        assert taken(aggregate(twins, rule, faults=2)) == [1, 2, 3]


def test_of_equal_diameters_the_least_variance(aggregate):
    # Rows 0 and 1 are the two ends of every narrowest subset; 2 and 3 are too far from each other to share it.
    X = torch.tensor([[-5.0, 0], [5, 0], [0, 5.5], [0, -5.2], [0, 30]]).double()
    chosen = taken(aggregate(X, "mda", faults=2))
    tied = [S for S in itertools.combinations(range(5), 3) if diameter(X[list(S)]) <= 10]
    assert tied == [(0, 1, 2), (0, 1, 3)]
    assert chosen == [0, 1, 3]


@pytest.mark.parametrize("rule", RULES)
def test_identical_rows_give_that_row(aggregate, rule):
    row = torch.randn(50, generator=torch.Generator().manual_seed(3))
    result = aggregate(row.repeat(7, 1), rule, faults=2)
    assert torch.allclose(result.vector, row, rtol=1e-6)
    zeros = aggregate(torch.zeros(7, 3), rule, faults=2)
    assert not zeros.vector.any()
    assert taken(zeros) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rule", RULES)
def test_bounds(rule):
    pipeline = aggregators.build(rule, faults=2)
    assert pipeline.refuse(5) is None
    assert pipeline.refuse(4) == f"{rule} needs n > 2f: n is 4, f is 2"
    many = aggregators.build(rule, faults=10)
    assert many.refuse(23) is None  # 1,144,066
    assert many.refuse(24) is None  # 1,961,256
    assert many.refuse(25) == (
        f"{rule} tries all subsets of n - f updates, 2,000,000 at most: "
        "n is 25, f is 10, and there are 3,268,760"
    )
    few = aggregators.build(rule, faults=1)
    assert few.refuse(64) is None
    assert few.refuse(65) == f"{rule} tries subsets of 64 updates at most, and n is 65"
    assert many.refuse(20) == f"{rule} needs n > 2f: n is 20, f is 10"


@pytest.mark.parametrize(("n", "k"), [(1, 0), (5, 0), (5, 1), (6, 3), (9, 4), (4, 3)])
def test_all_subsets_once_and_the_lowest_kept_first(n, k):
    out = left_out(n, k)
    kept = [tuple(i for i in range(n) if i not in row) for row in out.tolist()]
    assert len(kept) == comb(n, k)
    assert kept == list(itertools.combinations(range(n), n - k))


@pytest.mark.parametrize("rule", ["mda", "mva"])
@pytest.mark.parametrize("same", [False, True])
def test_many_subsets_take_little_memory(rule, same):
    X = torch.ones(22, 4) if same else torch.randn(22, 4, generator=torch.Generator().manual_seed(0))
    aggregators.aggregate(X, rule, (), faults=2)  # what is made once is made here
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    aggregators.aggregate(X, rule, (), faults=9)  # 497,420 of 9 each
    assert resident("VmHWM") - before < 40 * 1024


def resident(which):
    """What this process holds, or held at most, in KiB."""
    return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_far_rows_and_great_or_small_scales_change_no_choice(aggregate, rule, scale):
    X = torch.randn(10, 12, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    reference = taken(aggregate(X[2:], rule, faults=1))
    X[0], X[1] = 1e3, -1e6
    assert taken(aggregate(X * scale, rule, faults=3)) == [row + 2 for row in reference]


@pytest.mark.parametrize("rule", RULES)
def test_a_common_part_takes_no_digits_that_count(aggregate, rule):
    X = torch.randn(9, 12, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    assert taken(aggregate(X + 1e4, rule, faults=3)) == taken(aggregate(X, rule, faults=3))


def test_smea_prunes_and_stays_exact(aggregate):
    # More subsets than are looked at together; the clusters make the bounds differ much.
    X = torch.randn(15, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    X[:4] += 1.5
    chosen = taken(aggregate(X, "smea", faults=4))
    assert greatest_variance(X[chosen]) == pytest.approx(least(X, 4, greatest_variance))


@pytest.mark.parametrize("seed", range(6))
def test_smea_is_exact_however_few_subsets_are_looked_at_together(aggregate, monkeypatch, seed):
    monkeypatch.setattr(smea, "_AT_ONCE", 1 + seed)  # so that later ones are decided by a factor
    monkeypatch.setattr(smea, "_POWER_STEPS", 1)  # of loose bounds, which leave the order to chance
    X = torch.randn(9, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = taken(aggregate(X, "smea", faults=3))
    assert greatest_variance(X[chosen]) == pytest.approx(least(X, 3, greatest_variance))
    twins = torch.tensor([[5.0], [1.0], [1.0], [1.0], [1.0]]).double()
    assert taken(aggregate(twins, "smea", faults=2)) == [1, 2, 3]


def test_the_bounds_of_smea_are_below_and_close():
    X = torch.randn(9, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    out = left_out(9, 3)
    ((_, table),) = masks(out, 9)
    bounds = smea._bounds(torch.cdist(X, X) ** 2, table)
    exact = torch.tensor([greatest_variance(X[kept.bool()]) for kept in table], dtype=torch.float64)
    assert bool((bounds <= exact * (1 + 1e-12)).all())
    assert float((bounds / exact).mean()) > 0.9
