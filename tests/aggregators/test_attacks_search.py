"""The optimised attacks: against a search written out on the whole matrix, and never the zero vector."""

from __future__ import annotations

import pytest
import torch

import aggregators
from aggregators import attacks
from aggregators.core.rule import Needs
from aggregators.rules.trimmed_mean import TrimmedMean

PIPELINES = [
    ("mean", (), 0),
    ("trimmed-mean", (), 3),
    ("median", (), 3),
    ("krum", (), 3),
    ("multi-krum", ("nnm",), 3),
    ("geometric-median", (), 3),
    ("trimmed-mean", ("arc", "nnm"), 3),
]
OPTIMAL = ["optimal-alie", "optimal-ipm", "optimal-sign-flip"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def honest(seed=7, h=10, d=40):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(d, generator=generator) + 0.1
    return 0.3 + scale * torch.randn(h, d, generator=generator)


def family(name, X):
    """The factors that a search may take, far more of them than it tries, and the update of each."""
    mean, spread = X.mean(dim=0), X.std(dim=0, correction=1)
    if name == "optimal-alie":
        z = torch.logspace(-1.301, 2, 250)
        return torch.cat([-z, z])[:, None] * spread + mean
    low = -2.0 if name == "optimal-ipm" else 0.0
    return -torch.logspace(low, 3, 500)[:, None] * mean


@pytest.mark.parametrize("name", OPTIMAL)
@pytest.mark.parametrize(("rule", "pre", "faults"), PIPELINES)
def test_as_strong_as_a_far_finer_search(aggregate, name, rule, pre, faults):
    X = honest()
    mean = X.mean(dim=0)

    def harm(bad):
        pool = torch.cat([X, bad.expand(3, -1)])
        return float((aggregate(pool, rule, pre=pre, faults=faults).vector - mean).norm())

    pipeline = aggregators.build(rule, pre=pre, faults=faults)
    found = attacks.forge(name, X, copies=3, pipeline=pipeline)
    assert float(found.norm()) > 0.009 * float(mean.norm())
    assert harm(found) >= 0.95 * max(harm(bad) for bad in family(name, X)[::5])


class Chunks(aggregators.MatrixSource):
    """Seventy columns at a time."""

    def chunks(self):
        return ((start, self.matrix[:, start : start + 70]) for start in range(0, self.size, 70))


@pytest.mark.parametrize("name", OPTIMAL)
def test_chunks_and_a_function_give_the_same(aggregate, name):
    X = honest(d=300)
    pipeline = aggregators.build("trimmed-mean", pre=("nnm",), faults=3)
    whole = attacks.forge(name, X, copies=3, pipeline=pipeline)
    forgery = attacks.build(name).plan(Chunks(X), copies=3, pipeline=pipeline)
    pieces = torch.empty(300)
    for start in (140, 0, 280, 70, 210):
        forgery.forge(X[:, start : start + 70], pieces[start : start + 70], start)
    assert torch.allclose(pieces, whole, atol=1e-5)

    def known(pool):
        return aggregate(pool, "trimmed-mean", pre=("nnm",), faults=3).vector

    assert torch.allclose(attacks.forge(name, X, copies=3, pipeline=known), whole, rtol=1e-4, atol=1e-4)


def test_at_least_forty_are_tried_and_none_is_zero():
    X = honest()
    seen = []

    def no_matter_what(pool):
        seen.append(pool[-1].clone())
        assert pool.shape == (12, 40)
        return pool[0]

    for name in OPTIMAL:
        seen.clear()
        out = attacks.forge(name, X, copies=2, pipeline=no_matter_what)
        assert len(seen) >= 40
        assert all(float(bad.norm()) > 0 for bad in seen)
        assert float(out.norm()) > 0


class NeedsTrust(TrimmedMean):
    needs = Needs.TRUSTED


def test_what_is_attacked_has_to_be_known_and_to_bear_so_many():
    with pytest.raises(aggregators.RuleError, match="optimal-ipm has to know the pipeline"):
        attacks.forge("optimal-ipm", honest())
    with pytest.raises(aggregators.RuleError, match="needs n > 2f: n is 12, f is 6"):
        attacks.forge(
            "optimal-alie", honest(), copies=2, pipeline=aggregators.build("trimmed-mean", faults=6)
        )
    keeps = aggregators.build("trimmed-mean", faults=2)
    object.__setattr__(keeps, "rule", NeedsTrust(faults=2))
    with pytest.raises(aggregators.RuleError, match="give the attack a function"):
        attacks.forge("optimal-alie", honest(), pipeline=keeps)
    with pytest.raises(aggregators.RuleError, match="copies must be an integer of at least 1"):
        attacks.forge("optimal-alie", honest(), copies=0)
