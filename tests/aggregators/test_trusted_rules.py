"""NNA and FLTrust, the rules with a trusted row, against plain loops."""

from __future__ import annotations

import pytest
import torch

import aggregators
from aggregators import RuleError
from aggregators.core.options import counted


def drawn(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(X, rule, trusted, faults, pre=()):
    return aggregators.aggregate(X, rule, pre, faults=faults, trusted=trusted)


def nna(X, f, own):
    key = {j: (j != own, float(((X[own] - X[j]) ** 2).sum()), j) for j in range(len(X))}
    return sorted(sorted(key, key=key.__getitem__)[: len(X) - f])


def fltrust(X, root):
    g = X[root]
    total, result = 0.0, torch.zeros_like(g)
    for i, x in enumerate(X):
        if i == root or not float(x.norm()) or not float(g.norm()):
            continue
        trust = max(0.0, float(x @ g / x.norm() / g.norm()))
        total += trust
        result += trust * float(g.norm() / x.norm()) * x
    return result / total if total else result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "f"), [(1, 0), (5, 0), (3, 1), (8, 3), (12, 1)])
def test_nna_by_definition_with_ties(n, f, seed):
    X = torch.randint(-1, 2, (n, 3), generator=torch.Generator().manual_seed(seed)).double()
    for own in range(n):
        result = run(X, "nna", own, f)
        near = nna(X, f, own)
        assert [i for i in range(n) if result.selected[i]] == near
        assert torch.allclose(result.vector, X[near].mean(dim=0))
        assert result.scores.tolist() == pytest.approx((X - X[own]).norm(dim=1).tolist())
        assert result.treatment[own] == "taken, as the trusted update"
        assert result.reason == f"mean of the {counted(n - f, 'update')} of {n} nearest to the trusted one"


def test_nna_holds_its_own_before_its_twins():
    assert run(torch.ones(5, 2), "nna", 4, 2).selected == (True, True, False, False, True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n", "f"), [(2, 0), (2, 1), (5, 4), (9, 3)])
def test_fltrust_by_definition(n, f, seed):
    X = drawn(n, 4, seed)
    X[0] *= 1e3
    for root in (0, n - 1):
        result = run(X, "fltrust", root, f)
        assert torch.allclose(result.vector, fltrust(X, root), atol=1e-9)
        assert not result.selected[root]
        assert result.treatment[root] == "the root update: it judges and is not mixed"
        cosines = (X @ X[root]) / X.norm(dim=1) / X[root].norm()
        assert result.scores.tolist() == pytest.approx(cosines.clamp(min=0).tolist())


def test_fltrust_is_never_longer_than_the_root_update():
    for seed in range(20):
        X = drawn(8, 5, seed)
        X[1:4] *= 1e6
        X[4] *= 1e-6
        assert float(run(X, "fltrust", 0, 7).vector.norm()) <= float(X[0].norm()) * (1 + 1e-9)


def test_fltrust_without_anybody_to_trust_is_zero():
    X = torch.tensor([[1.0, 0.0], [-1.0, 5.0], [0.0, 3.0], [0.0, 0.0]])
    result = run(X, "fltrust", 0, 3)
    assert result.vector.tolist() == [0.0, 0.0]
    assert result.reason == "zero, as none of 3 updates points the root update's way"
    assert result.selected == (False,) * 4
    zero_root = run(torch.ones(3, 2) * torch.tensor([[0.0], [1.0], [2.0]]), "fltrust", 0, 1)
    assert zero_root.vector.tolist() == [0.0, 0.0]


def test_fltrust_leaves_out_what_is_too_short_to_have_a_direction():
    # Each square underflows, so that the computed norm is far too small, and scaling by it would be far too much.
    X = torch.full((3, 1_000), 1.0)
    X[1] = 3e-23
    X[1, 0] = 4e-23
    result = run(X, "fltrust", 0, 1)
    assert result.selected == (False, False, True)
    assert torch.allclose(result.vector, X[0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize(("rule", "f"), [("nna", 2), ("fltrust", 4)])
def test_rows_that_are_not_finite_have_no_say(rule, f, bad):
    X = drawn(7, 30, 3).float()
    X[2], X[5] = bad, -bad
    rest = X[[0, 1, 3, 4, 6]]
    expected = run(rest, rule, 1, f if rule == "fltrust" else 0).vector
    pipeline = aggregators.build(rule, faults=f)
    survey = aggregators.Survey(pipeline, 7, 30)
    survey.add(0, X)
    plan = survey.plan(trusted=1)
    vector = torch.empty(30)
    plan.reduce(X, vector)
    assert torch.allclose(vector, expected, atol=1e-6)
    assert not plan.selected[2]
    assert not plan.selected[5]
    if rule == "fltrust":
        assert torch.allclose(run(X, rule, 1, f).vector, expected, atol=1e-6)


@pytest.mark.parametrize("rule", ["nna", "fltrust"])
def test_the_trusted_row_must_be_there_and_finite(rule):
    X = drawn(5, 3, 1)
    with pytest.raises(RuleError, match=f"{rule} needs a trusted row from 0 to 4"):
        run(X, rule, None, 1)
    with pytest.raises(RuleError, match="must be one of the 5"):
        run(X, rule, 5, 1)


def test_bounds():
    assert aggregators.build("nna", faults=2).refuse(5) is None
    assert aggregators.build("nna", faults=2).refuse(4) == "nna needs n > 2f: n is 4, f is 2"
    fltrust = aggregators.build("fltrust", faults=3)
    assert fltrust.refuse(4) is None
    assert fltrust.refuse(3) == "fltrust needs n > f and n > 1: n is 3, f is 3"
    assert aggregators.build("fltrust").refuse(1) == "fltrust needs n > f and n > 1: n is 1, f is 0"


def test_the_trusted_row_moves_with_the_rejected():
    X = drawn(6, 10, 2)
    X[0] = torch.nan
    for rule in ("nna", "fltrust"):
        assert torch.equal(run(X, rule, 3, 1).vector, run(X[1:], rule, 2, 1).vector)


def test_pre_rules_leave_the_trusted_row_as_it_is():
    X = drawn(9, 5, 2)
    X[3] *= 100  # arc would clip it
    result = run(X, "fltrust", 3, 2, pre=("arc", "nnm"))
    assert float(result.vector.norm()) > 10 * float(X[4].norm())
    assert bool(result.vector.isfinite().all())


@pytest.mark.parametrize("rule", ["nna", "fltrust"])
def test_symmetries(rule):
    X = drawn(9, 5, 6)
    one = run(X, rule, 4, 2).vector
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    other = run(X[order], rule, int((order == 4).nonzero()), 2).vector
    assert torch.allclose(one, other)
    assert torch.allclose(run(X * 0.25, rule, 4, 2).vector, one * 0.25)
    if rule == "nna":
        assert torch.allclose(run(X + 7, rule, 4, 2).vector, one + 7)
    same = X[:1].repeat(5, 1)
    assert torch.allclose(run(same, rule, 2, 2).vector, X[0])
