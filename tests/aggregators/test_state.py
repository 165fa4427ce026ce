"""What rules keep from round to round, whatever the updates are."""

from __future__ import annotations

import pytest
import torch

import aggregators
from aggregators import RuleError

LONGEST = 1.8e19  # an update's norm, whose square is just finite in float32


def rounds(n, d=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        X = torch.randn(n, d, generator=generator)
        X[-1] = 0
        X[-1, 0] = LONGEST
        yield X


def test_a_history_longer_than_any_update_is_shortened_and_keeps_its_direction():
    state = {}
    for X in rounds(5):
        result = aggregators.aggregate(X, "foolsgold", (), faults=1, state=state)
        state = dict(result.state)
        long = state["history/4"].double()
        assert float(long.norm()) == pytest.approx(1e18, rel=1e-5)
        assert float(long[0] / long.norm()) == pytest.approx(1)
        assert bool(result.vector.isfinite().all())
        assert not result.selected[4]  # it is unlike the others, and longer than any honest one may be
    others = torch.stack([sum(X[i] for X in rounds(5)) for i in range(4)])
    kept = torch.stack([state[f"history/{i}"] for i in range(4)])
    assert torch.allclose(kept, others, rtol=1e-5, atol=1e-5)


def test_a_shortened_history_still_tells_sybils():
    generator = torch.Generator().manual_seed(1)
    state = {}
    for _ in range(3):
        X = torch.randn(6, 40, generator=generator)
        X[4] *= LONGEST / X[4].norm()
        X[5] = X[4] / 2
        result = aggregators.aggregate(X, "foolsgold", (), state=state)
        state = dict(result.state)
        assert result.weights[4:].tolist() == [0, 0]
        assert float(result.weights[:4].min()) > 0.1


def test_a_center_that_every_update_pulls_to_the_limit_stays_within():
    state = {}
    for X in rounds(1):
        result = aggregators.aggregate(X, "centered-clipping", (), tau=1e30, state=state)
        state = dict(result.state)
        assert float(state["center"].double().norm()) <= 1.0001e18


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rule", "name"), [("centered-clipping", "center"), ("foolsgold", "history/1"), ("foolsgold", "all")]
)
def test_a_state_without_a_finite_norm_is_one_sentence(rule, name, dtype):
    X = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    huge = 1e30 if dtype == torch.float32 else 1e300
    names = [f"history/{i}" for i in range(5)] if name == "all" else [name]
    with pytest.raises(RuleError, match="kept from an earlier round is so long"):
        aggregators.aggregate(
            X, rule, (), state={each: torch.full((40,), huge, dtype=dtype) for each in names}
        )


def test_two_kept_vectors_with_an_overflowing_product_are_one_sentence_too():
    pipeline = aggregators.build("foolsgold")
    gram = torch.eye(4, dtype=torch.float64)
    gram[2, 3] = gram[3, 2] = torch.inf
    with pytest.raises(RuleError, match="so long"):
        pipeline.plan(2, gram, kept=2)
