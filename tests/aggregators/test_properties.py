"""What each rule must have whatever the updates: symmetries, and the inequality that makes a rule robust."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SETTINGS = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
RULES = ["mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median"]
ROBUST = RULES[1:]
# Rows with the same neighbours become the same mixture, and the lowest of the tied ones wins; so where order or
# rounding changes, the rules that select are tried without mixing.
TIELESS = [
    (rule, pre)
    for rule in RULES
    for pre in ((), ("arc",), ("nnm",), ("arc", "nnm"))
    if not ("nnm" in pre and "krum" in rule)
]
FACTORS = st.sampled_from([-(2.0**20), -1.0, 2.0**-20, 0.5, 64.0])  # powers of two: every tie stays one


@st.composite
def updates(draw, ties=True):
    """(X [n, d] float64, f): rows at random, the first f of them scaled.

    Without ties no two rows, distances or scores are equal: rows of zeros are, and so are rows on a line that
    are clipped, and the scores of two rows that are each other's only neighbour.
    """
    f = draw(st.integers(0, 3))
    n = draw(st.integers(2 * f + (3 if ties else 4), 2 * f + 7))
    d = draw(st.integers(1 if ties else 2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    X[:f] *= draw(st.sampled_from([0.0, 1.0, 30.0, 1e4] if ties else [0.01, 1.0, 30.0, 1e4]))
    return X, f


def run(aggregate, X, rule, pre, faults):
    return aggregate(X, rule, pre=pre, faults=faults if "arc" in pre or rule != "mean" else 0)


@pytest.mark.parametrize(("rule", "pre"), TIELESS)
@SETTINGS
@given(case=updates(ties=False), seed=st.integers(0, 1_000))
def test_the_order_of_updates_does_not_matter(aggregate, rule, pre, case, seed):
    X, f = case
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    one, other = run(aggregate, X, rule, pre, f), run(aggregate, X[order], rule, pre, f)
    assert torch.allclose(one.vector, other.vector, rtol=1e-6, atol=1e-6)
    assert one.plan.weights[order].tolist() == pytest.approx(other.plan.weights.tolist(), abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pre", [(), ("arc", "nnm")], ids="-".join)
@SETTINGS
@given(case=updates(), factor=FACTORS)
def test_it_scales_with_the_updates(aggregate, rule, pre, case, factor):
    X, f = case
    one, other = run(aggregate, X, rule, pre, f).vector, run(aggregate, X * factor, rule, pre, f).vector
    assert torch.allclose(one * factor, other, rtol=1e-6, atol=1e-6 * abs(factor))


# Clipping is about the origin, so a pipeline with arc does not move.
@pytest.mark.parametrize(("rule", "pre"), [(rule, pre) for rule, pre in TIELESS if "arc" not in pre])
@SETTINGS
@given(case=updates(ties=False), seed=st.integers(0, 1_000))
def test_it_moves_with_the_updates(aggregate, rule, pre, case, seed):
    X, f = case
    shift = torch.randn(X.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, other = run(aggregate, X, rule, pre, f).vector, run(aggregate, X + shift, rule, pre, f).vector
    assert torch.allclose(one + shift, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["median", "geometric-median", "trimmed-mean", "krum"])
@pytest.mark.parametrize("pre", [(), ("nnm",)], ids="-".join)
@SETTINGS
@given(case=updates())
def test_every_subset_that_may_be_honest_bounds_the_error(aggregate, kappa, rule, pre, case):
    """|F - mean of S|^2 <= kappa / |S| sum over S of |x_i - mean of S|^2 for all S of n - f rows."""
    X, f = case
    n = len(X)
    bound = kappa(rule, pre, n, f)
    result = aggregate(X, rule, pre=pre, faults=f).vector
    for subset in itertools.combinations(range(n), n - f):
        honest = X[list(subset)]
        centre = honest.mean(dim=0)
        spread = float(((honest - centre) ** 2).sum()) / (n - f)
        assert float(((result - centre) ** 2).sum()) <= bound * spread * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("pre", [(), ("arc",), ("nnm",), ("arc", "nnm")], ids="-".join)
@SETTINGS
@given(case=updates(), power=st.integers(0, 18))
def test_colluders_at_any_distance_leave_it_near_the_honest(aggregate, rule, pre, case, power):
    X, f = case
    X = X.float()
    X[:f] = 10.0**power
    honest = X[f:]
    result = aggregate(X, rule, pre=pre, faults=f).vector
    assert float((result - honest.mean(dim=0)).norm()) <= 20 * float(honest.norm(dim=1).max())


def test_a_mean_is_moved_anywhere(aggregate):
    # The property above is worth something only if it can fail.
    X = torch.ones(5, 3)
    X[0] = -1e6
    assert float(aggregate(X, "mean").vector.norm()) > 1e5
