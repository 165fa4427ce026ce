"""Krum and Multi-Krum against their definition, by trying all subsets."""

from __future__ import annotations

import itertools

import pytest
import torch

import aggregators


def scores(X, f):
    """The least sum of squared distances to any n - f - 2 others, float64."""
    n = len(X)
    result = []
    for i in range(n):
        away = [float(((X[i] - X[j]) ** 2).sum()) for j in range(n) if j != i]
        result.append(min(sum(chosen) for chosen in itertools.combinations(away, n - f - 2)))
    return result


def winners(X, f, m):
    values = scores(X, f)
    return sorted(range(len(X)), key=lambda i: (values[i], i))[:m]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "f"), [(3, 0), (5, 1), (6, 1), (7, 2), (8, 2), (9, 3)])
def test_by_definition_with_ties(aggregate, n, f, seed):
    # Small integers make every distance exact, and ties and duplicates plenty.
    X = torch.randint(-1, 2, (n, 4), generator=torch.Generator().manual_seed(seed)).float()
    wide = X.double()
    one = aggregate(X, "krum", faults=f)
    assert one.plan.scores.tolist() == scores(wide, f)
    (winner,) = winners(wide, f, 1)
    assert torch.equal(one.vector, X[winner])
    assert one.plan.selected == tuple(i == winner for i in range(n))
    assert one.plan.treatment[winner].startswith("taken")
    for m in range(1, n - f + 1):
        several = aggregate(X, "multi-krum", faults=f, m=m)
        chosen = winners(wide, f, m)
        assert [i for i in range(n) if several.plan.selected[i]] == sorted(chosen)
        assert torch.allclose(several.vector.double(), wide[chosen].mean(dim=0), atol=1e-6)
    default = aggregate(X, "multi-krum", faults=f)
    assert torch.allclose(default.vector.double(), wide[winners(wide, f, n - f)].mean(dim=0), atol=1e-6)


def test_neighbours_are_n_f_2_and_not_n_f_1(aggregate):
    # On a line, with n - f - 2 = 2 neighbours row 1 wins; with 3 it would be row 2.
    X = torch.tensor([[0.0], [1.0], [2.0], [3.1], [5.0]]).double()
    result = aggregate(X, "krum", faults=1)
    assert result.plan.scores.tolist() == pytest.approx([5.0, 2.0, 2.21, 4.82, 12.61])
    assert result.vector.tolist() == [1.0]


def test_ties_go_to_the_lowest_row(aggregate):
    X = torch.tensor([[4.0], [0.0], [1.0], [0.0], [1.0]])
    result = aggregate(X, "krum", faults=1)
    assert result.plan.scores[1:].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert result.vector.tolist() == [0.0]
    assert result.plan.selected == (False, True, False, False, False)


def test_identical_rows_give_that_row(aggregate):
    row = torch.randn(50, generator=torch.Generator().manual_seed(3))
    for rule in ("krum", "multi-krum"):
        result = aggregate(row.repeat(7, 1), rule, faults=2)
        assert torch.allclose(result.vector, row, rtol=1e-6)
        assert result.plan.selected == tuple(i < (1 if rule == "krum" else 5) for i in range(7))


def test_bounds():
    krum = aggregators.build("krum", faults=1)
    assert krum.refuse(5) is None
    assert krum.refuse(4) == "krum needs n > 2f + 2: n is 4, f is 1"
    several = aggregators.build("multi-krum", faults=2, options={"m": 6})
    assert several.refuse(8) is None
    assert several.refuse(7) == "multi-krum needs m <= n - f: m is 6, n is 7, f is 2"
    assert (
        aggregators.build("multi-krum", faults=3).refuse(8) == "multi-krum needs n > 2f + 2: n is 8, f is 3"
    )
    with pytest.raises(aggregators.RuleError, match="m must be an integer of at least 1, and it is 0"):
        aggregators.build("multi-krum", options={"m": 0})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_a_row_without_a_finite_norm_is_never_taken(aggregate, bad):
    X = torch.randn(9, 40, generator=torch.Generator().manual_seed(5))
    X[0], X[4] = bad, -bad
    for rule in ("krum", "multi-krum"):
        result = aggregate(X, rule, faults=2)
        assert result.plan.scores.isinf().tolist() == [i in (0, 4) for i in range(9)]
        assert not result.plan.selected[0]
        assert not result.plan.selected[4]
        assert bool(result.vector.isfinite().all())
