"""The inequality that makes a rule robust, against attackers who know the whole pipeline and search for the worst."""

from __future__ import annotations

import itertools

import pytest
import torch

import aggregators
from aggregators import attacks

PROVEN = ["median", "geometric-median", "trimmed-mean", "krum", "mda", "mva", "smea"]
UNPROVEN = ["multi-krum", "bulyan", "caf", "meamed", "phocas", "rfa"]
ATTACKS = [
    *(attacks.build(name) for name in ("optimal-alie", "optimal-ipm", "optimal-sign-flip")),
    *(
        attacks.build(name, direction=direction)
        for name in ("min-max", "min-sum")
        for direction in ("std", "sign", "mean")
    ),
]
N, D = 11, 16


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def attacked(rule, pre, f):
    """(what the attacker sent, all updates [n, d], their aggregate [d]), for each attack and a few sets of data."""
    pipeline = aggregators.build(rule, pre=pre, faults=0 if rule == "mean" else f)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        scale = torch.rand(D, generator=generator, dtype=torch.float64) + 0.1
        honest = 0.3 + scale * torch.randn(N - f, D, generator=generator, dtype=torch.float64)
        for attack in ATTACKS:
            forged = attacks.forge(attack, honest, copies=f, pipeline=pipeline)
            X = torch.cat([honest, forged.expand(f, -1)])
            vector = aggregators.aggregate(X, rule, pre, faults=pipeline.faults).vector
            yield f"{attack.name}, data {seed}", X, vector


def errors(X, result, f):
    """|F - mean of S|^2 over the variance of S, for each S of n - f rows [subsets]: the honest ones come first."""
    subsets = torch.tensor(list(itertools.combinations(range(N), N - f)))
    centred = X[subsets] - X[subsets].mean(dim=1, keepdim=True)
    off = (result - X[subsets].mean(dim=1)).square().sum(dim=1)
    widest = torch.linalg.eigvalsh(centred @ centred.mT)[:, -1] / (N - f)
    return off / (centred.square().sum(dim=(1, 2)) / (N - f)), off / widest


@pytest.mark.parametrize("pre", [(), ("nnm",)], ids="-".join)
@pytest.mark.parametrize("rule", PROVEN)
def test_every_subset_that_may_be_honest_bounds_the_error(kappa, rule, pre):
    f = 3
    bound = kappa(rule, pre, N, f) * (1 + 1e-6)
    for case, X, result in attacked(rule, pre, f):
        to_variance, to_widest = errors(X, result, f)
        assert float(to_variance.max()) <= bound, case
        if rule == "smea" and not pre:  # in its inequality the greatest variance in any direction will do
            assert float(to_widest.max()) <= bound, case


@pytest.mark.parametrize("pre", [(), ("arc", "nnm")], ids="-".join)
@pytest.mark.parametrize("rule", UNPROVEN)
def test_rules_without_a_kappa_of_their_own_stay_within_twice_the_honest_variance(rule, pre):
    f = 2  # bulyan needs n >= 4f + 3
    for case, X, result in attacked(rule, pre, f):
        assert float(errors(X, result, f)[0][0]) <= 2.0, case


def test_a_mean_breaks_every_bound(kappa):
    # The tests above are worth something only if they can fail.
    worst = max(float(errors(X, result, 3)[0][0]) for _, X, result in attacked("mean", (), 3))
    assert worst > 100 * max(kappa(rule, (), N, 3) for rule in PROVEN)
