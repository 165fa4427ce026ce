"""Options at and beyond their limits, and what is told of a single update."""

from __future__ import annotations

import re

import pytest
import torch

import aggregators
from aggregators import RuleError
from aggregators.core import registry


def rows(n, d=5, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("rule", "options", "sentence"),
    [
        ("flag", {"lam": 1e308}, "flag: lam must be from 0 to 1,000,000, and it is 1e+308"),
        ("flag", {"lam": -1}, "flag: lam must be from 0 to 1,000,000, and it is -1.0"),
        ("rfa", {"nu": 1e-310}, "rfa: nu must be at least 1e-20, and it is 1e-310"),
        ("rfa", {"nu": 0.0}, "rfa: nu must be above zero, and it is 0.0"),
    ],
)
def test_options_beyond_what_can_be_worked_out(rule, options, sentence):
    with pytest.raises(RuleError) as caught:
        aggregators.build(rule, options=options)
    assert str(caught.value) == sentence


def test_options_at_their_limits_give_numbers(aggregate):
    for X in (rows(7), torch.ones(7, 5), torch.zeros(7, 5)):
        for rule, options in (("flag", {"lam": 1e6}), ("rfa", {"nu": 1e-20})):
            vector = aggregate(X, rule, faults=2, **options).vector
            assert float(vector.norm()) <= float(X.norm(dim=1).max()) * 1.0001


def test_of_one_there_is_no_plural():
    for rule in registry.names(registry.RULES):
        if aggregators.build(rule).refuse(1) is None:
            made = aggregators.aggregate(rows(1), rule, ("arc", "nnm"), trusted=0)
            told = f"{made.reason}; {made.treatment[0]}"
            assert not re.search(r"\b1 (means|updates|steps|iterations|directions)\b", told), told
    made = aggregators.aggregate(rows(9), "mean", "bucketing:9")
    assert made.reason == "bucketing made 1 mean of 9 updates, then mean of 1 update, all alike"
    assert aggregators.aggregate(rows(9), "dnc", (), faults=1, c=8).reason == (
        "mean of the 1 update of 9 kept by every draw"
    )
