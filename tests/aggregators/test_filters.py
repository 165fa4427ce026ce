"""CGE, Bulyan, CAF and DnC against plain loops over the rows, in coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import aggregators
from aggregators.core.options import counted


def drawn(n, d, seed, far=0):
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    X[:far] += 3
    return X


def taken(plan):
    return [row for row, selected in enumerate(plan.selected) if selected]


def cge(X, f):
    order = sorted(range(len(X)), key=lambda i: (float(X[i].norm()), i))
    return sorted(order[: len(X) - f])


def bulyan_selection(X, f):
    left, chosen = list(range(len(X))), []
    while len(chosen) < len(X) - 2 * f:
        keys = {}
        for i in left:
            away = sorted(float(((X[i] - X[j]) ** 2).sum()) for j in left if j != i)
            neighbours = max(1, len(left) - f - 2)
            keys[i] = (sum(away[:neighbours]), sum(away[: neighbours + 1]), i)
        winner = min(left, key=keys.__getitem__)
        chosen.append(winner)
        left.remove(winner)
    return chosen


def bulyan(X, f):
    selection = X[sorted(bulyan_selection(X, f))]
    keep = len(X) - 4 * f
    result = []
    for column in selection.T:
        values = sorted(column.tolist())
        middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        nearest = sorted(values, key=lambda value: (abs(value - middle), value))[:keep]
        result.append(sum(nearest) / keep)
    return torch.tensor(result, dtype=torch.float64)


def caf(X, f):
    """(mu, the greatest eigenvalue there, the c there, how many steps), by covariance matrices [d, d]."""
    n = len(X)
    c = torch.ones(n, dtype=torch.float64)
    best, steps = (X.mean(dim=0), torch.inf, c.clone()), 0
    while float(c.sum()) > n - 2 * f + 1e-9:
        steps += 1
        mean = (c[:, None] * X).sum(dim=0) / c.sum()
        away = X - mean
        values, vectors = torch.linalg.eigh((c[:, None] * away).T @ away / c.sum())
        if float(values[-1]) < best[1]:
            best = (mean, float(values[-1]), c.clone())
        stretch = (away @ vectors[:, -1]) ** 2
        c = c * (1 - stretch / stretch[c > 0].max()).where(c > 0, 0.0)
    return (*best, steps)


def dnc(X, f, c, columns):
    """(rows kept by every draw, how often each is kept), by singular vectors."""
    counts = [0] * len(X)
    for chosen in columns:
        away = X[:, chosen] - X[:, chosen].mean(dim=0)
        scores = (away @ torch.linalg.svd(away, full_matrices=False).Vh[0]) ** 2
        order = sorted(range(len(X)), key=lambda i: float(scores[i]))
        for row in order[: len(X) - int(c * f)]:
            counts[row] += 1
    return [i for i, count in enumerate(counts) if count == max(counts)], counts


def columns(seed, draws, count, d):
    chosen = []
    for k in range(draws):
        stream, found = np.random.Philox(key=np.array([seed % 2**64, k], dtype=np.uint64)), []
        while len(found) < min(count, d):
            each = int(stream.random_raw()) % d
            if each not in found:
                found.append(each)
        chosen.append(sorted(found))
    return chosen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "f"), [(1, 0), (5, 0), (3, 1), (8, 3)])
def test_cge_by_definition(aggregate, n, f, seed):
    X = torch.randint(-1, 2, (n, 3), generator=torch.Generator().manual_seed(seed)).double()
    result = aggregate(X, "cge", faults=f)
    assert taken(result.plan) == cge(X, f)
    assert torch.allclose(result.vector, X[cge(X, f)].mean(dim=0))
    assert result.plan.scores.tolist() == pytest.approx(X.norm(dim=1).tolist())
    assert result.plan.reason == f"mean of the {counted(n - f, 'update')} of {n} with the least norm"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 1), (9, 1), (11, 2), (13, 2), (15, 3)])
def test_bulyan_by_definition(aggregate, n, f, seed):
    X = drawn(n, 5, seed, far=seed % (f + 1))
    result = aggregate(X, "bulyan", faults=f)
    assert torch.allclose(result.vector, bulyan(X, f))
    assert taken(result.plan) == sorted(bulyan_selection(X, f))
    if f:
        assert result.plan.reason == (
            f"mean of the {n - 4 * f} values nearest to each coordinate's median, of {n - 2 * f} updates of {n}"
        )
        for number, row in enumerate(bulyan_selection(X, f), start=1):
            assert result.plan.treatment[row].startswith(f"taken as number {number} with score ")


@pytest.mark.parametrize("seed", range(6))
def test_bulyan_ties_and_duplicates(aggregate, seed):
    X = torch.randint(-1, 2, (11, 2), generator=torch.Generator().manual_seed(seed)).double()
    assert torch.allclose(aggregate(X, "bulyan", faults=2).vector, bulyan(X, 2))


def test_bulyan_scores_again_after_each_choice(aggregate):
    # One-shot Multi-Krum would take other rows.
    differs = 0
    for seed in range(10):
        X = drawn(11, 3, seed)
        once = aggregate(X, "multi-krum", faults=2, m=7).plan.selected
        differs += once != aggregate(X, "bulyan", faults=2).plan.selected
    assert differs >= 5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "f"), [(1, 0), (6, 0), (3, 1), (7, 2), (9, 4), (12, 3)])
def test_caf_by_definition(aggregate, n, f, seed):
    X = drawn(n, 4, seed, far=seed % (f + 1))
    result = aggregate(X, "caf", faults=f)
    mean, variance, weights, steps = caf(X, f)
    assert torch.allclose(result.vector, mean, atol=1e-9)
    assert result.plan.scores.tolist() == pytest.approx(weights.tolist(), abs=1e-9)
    assert steps <= 2 * f
    left = int((weights > 0).sum())
    assert (
        f"mean of {left} of {counted(n, 'update')} by {counted(steps, 'step')} of a filter"
        in result.plan.reason
    )
    if f:
        assert result.plan.reason.endswith(f"in any direction was {variance:.4g}")


def test_caf_ends_with_the_outliers_that_hold_others_up(aggregate):
    X = drawn(12, 5, 2)
    for row, far in enumerate((1e2, 1e3, 1e6)):
        X[row] = far
    result = aggregate(X, "caf", faults=3)
    assert result.plan.scores[:3].tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert float(result.vector.norm()) <= float(X[3:].norm(dim=1).max())
    steps = int(result.plan.reason.split("by ")[1].split()[0])
    assert 3 <= steps <= 6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("n", "f", "c"), [(6, 1, 1.0), (9, 3, 1.0), (9, 2, 1.5), (10, 3, 1.2), (5, 0, 1.0)])
def test_dnc_by_definition(n, f, c, whole, seed):
    d = 40
    X = drawn(n, d, seed, far=f)
    options = {"coordinates": 0} if whole else {"draws": 3, "coordinates": 20}
    drawings = [list(range(d))] if whole else columns(seed, 3, 20, d)
    result = aggregators.aggregate(X, "dnc", pre=(), faults=f, seed=seed, c=c, **options)
    kept, counts = dnc(X, f, c, drawings)
    assert [i for i in range(n) if result.selected[i]] == kept
    assert torch.allclose(result.vector, X[kept].mean(dim=0))
    for row, count in enumerate(counts):
        assert result.treatment[row].endswith(f": kept by {count} of {len(drawings)} draws")


def test_dnc_never_makes_an_empty_intersection_a_zero():
    # Coordinates one by one, many draws: each row is dropped by one draw or another.
    X = 5 + drawn(6, 30, 1)
    result = aggregators.aggregate(X, "dnc", pre=(), faults=2, draws=30, coordinates=1)
    kept, counts = dnc(X, 2, 1.0, columns(0, 30, 1, 30))
    assert max(counts) < 30
    assert [i for i in range(6) if result.selected[i]] == kept
    assert result.reason.endswith(f" kept by {max(counts)} of 30 draws, as none is by all")
    assert float(result.vector.mean()) > 4


def test_dnc_draws_from_the_seed_and_all_coordinates_when_there_are_few():
    X = drawn(9, 300, 4)
    one = [aggregators.aggregate(X, "dnc", (), faults=3, seed=s, coordinates=10).vector for s in (1, 1, 2)]
    assert torch.equal(one[0], one[1])
    assert not torch.equal(one[0], one[2])
    whole = aggregators.aggregate(X, "dnc", (), faults=3, coordinates=0).vector
    assert torch.allclose(aggregators.aggregate(X, "dnc", (), faults=3).vector, whole)


def test_dnc_takes_any_integer_as_a_seed_and_no_two_for_the_same():
    X = torch.rand(1, 5_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pipeline = aggregators.build("dnc", options={"draws": 1, "coordinates": 5})

    def drawn(seed):  # the squares of the five coordinates, added up
        return float(aggregators.Survey(pipeline, 1, 5_000, seed=seed).measure(0, X)[1])

    seeds = [0, 1, -1, -2, 2**63 - 1, 2**63, 2**63 + 1, 2**63 + 1_000, 2**64 - 2_000, -(2**63) + 2]
    assert len({drawn(seed) for seed in seeds}) == len(seeds)
    for seed in seeds:
        (places,) = columns(seed, 1, 5, 5_000)
        assert drawn(seed) == pytest.approx(float(X[0, places].square().sum()), rel=1e-12)
        assert drawn(seed) == drawn(seed + 2**64) == drawn(seed - 2**70)


def test_dnc_drops_a_row_with_one_overflowing_coordinate():
    X = drawn(9, 3_000, 4).float()
    X[4, 1_234] = 1e30  # outside of the draws
    assert all(1_234 not in chosen for chosen in columns(0, 5, 10, 3_000))
    result = aggregators.aggregate(X, "dnc", (), faults=3, coordinates=10)
    assert not result.selected[4]
    assert float(result.vector.abs().max()) < 10


def test_dnc_never_takes_a_row_that_is_not_finite(aggregate):
    X = drawn(9, 40, 4).float()
    X[1], X[6], X[7] = 1e30, -1e30, 1e30
    plan = aggregate(X, "dnc", faults=3, coordinates=0).plan
    assert taken(plan) == [0, 2, 3, 4, 5, 8]


@pytest.mark.parametrize(
    ("rule", "options", "f", "least", "sentence"),
    [
        ("cge", {}, 2, 5, "cge needs n > 2f: n is 4, f is 2"),
        ("caf", {}, 2, 5, "caf needs n > 2f: n is 4, f is 2"),
        ("bulyan", {}, 2, 11, "bulyan needs n >= 4f + 3: n is 10, f is 2"),
        ("bulyan", {}, 0, 3, "bulyan needs n >= 4f + 3: n is 2, f is 0"),
        ("dnc", {}, 2, 5, "dnc needs n > 2f: n is 4, f is 2"),
        ("dnc", {"c": 3.0}, 2, 7, "dnc needs n > c f: n is 6, c is 3, f is 2"),
        ("dnc", {"c": 1.15}, 20, 41, "dnc needs n > 2f: n is 40, f is 20"),
        ("dnc", {"c": 1e308}, 20, 10**9 + 1, "dnc needs n > c f: n is 1000000000, c is 1e+308, f is 20"),
    ],
)
def test_bounds(rule, options, f, least, sentence):
    pipeline = aggregators.build(rule, faults=f, options=options)
    assert pipeline.refuse(least) is None
    assert pipeline.refuse(least - 1) == sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"draws": 0}, "draws must be an integer of at least 1"),
        ({"coordinates": -1}, "coordinates must be an integer of at least 0"),
        ({"c": 0.4}, "c must be at least 1, or fewer than f are dropped, and it is 0.4"),
        ({"c": -2}, "c must be at least 1"),
        ({"c": float("nan")}, "c must be a finite number"),
    ],
)
def test_options_of_dnc(options, sentence):
    with pytest.raises(aggregators.RuleError, match=sentence):
        aggregators.build("dnc", options=options)
