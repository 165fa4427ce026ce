"""Finite updates that float32 can hold and not multiply: very long ones cost themselves only, very short ones count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aggregators
from aggregators import RuleError, kernels
from aggregators.core.registry import RULES, names
from exchange.admission import NORM_LIMIT, _check_norm
from muster.errors import UpdateRejected

SETTINGS = settings(
    max_examples=15, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
PRES = [(), ("arc",), ("nnm",), ("arc", "nnm")]
JUDGING = [rule for rule in names(RULES) if rule != "sign-vote"]  # that one makes signs, whatever the size
ROBUST = [rule for rule in JUDGING if rule not in ("mean", "foolsgold")]


def aggregate(X: torch.Tensor, rule: str, pre: tuple[str, ...], faults: int) -> aggregators.Aggregate:
    trusted = {"trusted": 5} if rule in ("fltrust", "nna") else {}
    return aggregators.aggregate(X, rule, pre, faults=faults, **trusted)


def some(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("rule", JUDGING)
@SETTINGS
@given(exponent=st.integers(-120, 60), seed=st.integers(0, 9), pre=st.sampled_from(PRES))
def test_scaling_all_updates_scales_the_result(
    rule: str, exponent: int, seed: int, pre: tuple[str, ...]
) -> None:
    if rule in (
        "centered-clipping",
        "rfa",
    ):  # these have a length among their options, in the updates' own unit
        return
    # Few digits, so that none is lost where float32 has no smaller numbers.
    X = torch.round(some(9, 40, seed) * 1024) / 1024
    faults = 0 if rule == "mean" and "arc" not in pre else 1
    try:
        one = aggregate(X, rule, pre, faults)
    except RuleError as refused:
        assert "needs" in str(refused) or "makes one row" in str(refused) or "bears no faulty" in str(refused)
        return
    other = aggregate(torch.ldexp(X, torch.tensor(exponent)), rule, pre, faults)
    back = torch.ldexp(other.vector.double(), torch.tensor(-exponent))
    assert torch.allclose(one.vector.double(), back, rtol=1e-3, atol=1e-3 * float(one.vector.abs().max()))
    assert torch.allclose(one.weights, other.weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("pre", PRES, ids="+".join)
@pytest.mark.parametrize("size", [1e3, 1e9, 5e16, 1e30, 3e38])
def test_one_huge_update_moves_the_result_no_further_than_honest_ones(
    rule: str, pre: tuple[str, ...], size: float
) -> None:
    X = some(9, 200, 1)
    X[0] = size
    try:
        found = aggregate(X, rule, pre, 1)
    except RuleError as refused:
        assert "needs" in str(refused) or "makes one row" in str(refused)
        return
    assert float(found.vector.double().norm()) <= 1.5 * float(X[1:].double().norm(dim=1).max())


@pytest.mark.parametrize("pre", PRES, ids="+".join)
@pytest.mark.parametrize("size", [1e3, 5e16, 1e30])
def test_foolsgold_bounds_what_is_longer_than_honest_updates_are(pre: tuple[str, ...], size: float) -> None:
    X = some(9, 200, 1)
    X[0] = size
    found = aggregate(X, "foolsgold", pre, 1)
    assert float(found.vector.norm()) <= 1.5 * float(X[1:].norm(dim=1).max())


@pytest.mark.parametrize("rule", JUDGING)
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40, 1.0])
def test_updates_that_are_all_alike_are_their_own_aggregate(rule: str, value: float) -> None:
    if rule == "foolsgold":  # as published: who is like another has no weight, and here everybody is
        return
    X = torch.full((9, 50), value)
    found = aggregate(X, rule, (), 0 if rule == "mean" else 1)
    assert torch.allclose(found.vector, X[0], rtol=1e-5, atol=2e-45)
    assert bool(found.weights.isfinite().all())


@SETTINGS
@given(exponents=st.lists(st.integers(-149, 40), min_size=2, max_size=6), seed=st.integers(0, 9))
def test_inner_products_are_right_for_rows_of_any_length(exponents: list[int], seed: int) -> None:
    X = torch.ldexp(some(len(exponents), 70, seed), torch.tensor(exponents)[:, None])
    wide = X.double()
    wanted = wide @ wide.T
    norms = wide.norm(dim=1)
    error = (kernels.gram(X) - wanted).abs()
    assert bool((error <= 1e-5 * norms[:, None] * norms[None, :] + 1e-300).all())


def test_a_short_row_changes_not_a_bit_of_what_the_others_make() -> None:
    X = some(6, 5000, 2)
    before = kernels.gram(X)
    X[2] *= 1e-30
    after = kernels.gram(X)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(before[others][:, others], after[others][:, others])
    assert torch.equal(after, after.T)


@pytest.mark.parametrize("norm", [1.01e18, 1e30, 3e38, 1e41])
def test_a_norm_that_no_rule_can_work_with_is_refused_by_name(norm: float) -> None:
    for limit in (None, 1e300):
        with pytest.raises(UpdateRejected, match="no run admits more than 1e\\+18") as caught:
            _check_norm(norm, limit)
        assert caught.value.id == "update.norm_too_large"
        assert "train.lr" in caught.value.fix


def test_what_the_spec_says_is_too_long_is_told_first() -> None:
    _check_norm(NORM_LIMIT, None)
    with pytest.raises(UpdateRejected, match="the run admits at most 10"):
        _check_norm(11.0, 10.0)
