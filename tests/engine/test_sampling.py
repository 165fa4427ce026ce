from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from coordinator.engine import sampling
from coordinator.engine.state import PeerStatus, PeerView
from muster.errors import ConfigError
from muster.spec.model import SamplingTable

PEERS = [f"p{i:02}" for i in range(30)]


def _views(peer_ids: list[str]) -> list[PeerView]:
    return [PeerView(peer_id=each, status=PeerStatus.ACTIVE, connected=True) for each in peer_ids]


def _build(**table: object) -> sampling.Sampler:
    return sampling.build(SamplingTable.model_validate(table))


@pytest.mark.parametrize(
    ("table", "peers", "cohort", "needed"),
    [
        ({}, 7, 7, 7),
        ({"fraction": 0.5}, 7, 4, 4),
        ({"fraction": 0.1}, 30, 3, 3),  # 0.1 * 30 is a little more than 3
        ({"fraction": 0.01}, 7, 1, 1),
        ({"count": 3}, 7, 3, 3),
        ({"count": 9}, 7, 7, 7),
        ({"count": 3, "over_select": 1.5}, 7, 5, 3),
        ({"count": 6, "over_select": 2.0}, 7, 7, 6),
        ({"fraction": 0.5}, 0, 0, 0),
    ],
)
def test_uniform_draws_a_fixed_number(table: dict[str, object], peers: int, cohort: int, needed: int) -> None:
    sampler = _build(**table)
    draw = sampler.sample(_views(PEERS[:peers]), Random(1))
    assert (len(draw.cohort), draw.needed, sampler.needed(peers)) == (cohort, needed, needed)
    assert list(draw.cohort) == sorted(set(draw.cohort))
    assert set(draw.cohort) <= set(PEERS[:peers])


@pytest.mark.parametrize("table", [{"fraction": 0.4}, {"policy": "poisson", "fraction": 0.4}])
def test_a_draw_depends_on_the_seed_and_not_on_the_order_of_peers(table: dict[str, object]) -> None:
    sampler = _build(**table)
    draws = {sampler.sample(_views(PEERS), Random(seed)).cohort for seed in range(20)}
    assert len(draws) == 20
    assert sampler.sample(_views(PEERS[::-1]), Random(3)) == sampler.sample(_views(PEERS), Random(3))


@pytest.mark.parametrize("table", [{"fraction": 0.2}, {"policy": "poisson", "fraction": 0.2}])
def test_every_peer_is_as_likely_as_any_other(table: dict[str, object]) -> None:
    sampler = _build(**table)
    random = Random(0)
    seen = Counter(peer for _ in range(3000) for peer in sampler.sample(_views(PEERS), random).cohort)
    assert all(abs(seen[peer] / 3000 - 0.2) < 0.04 for peer in PEERS)  # 5 standard errors


def test_poisson_draws_each_peer_by_itself() -> None:
    sampler = _build(policy="poisson", fraction=0.2)
    random = Random(0)
    sizes = [len(sampler.sample(_views(PEERS), random).cohort) for _ in range(3000)]
    mean = sum(sizes) / 3000
    variance = sum((size - mean) ** 2 for size in sizes) / 3000
    assert mean == pytest.approx(6, abs=0.2)
    assert variance == pytest.approx(30 * 0.2 * 0.8, rel=0.15)  # binomial, not fixed
    assert sampler.needed(30) == 6


def test_poisson_wants_all_that_it_draws_unless_it_over_selects() -> None:
    draw = _build(policy="poisson", fraction=0.5).sample(_views(PEERS), Random(2))
    assert draw.needed == len(draw.cohort)
    more = _build(policy="poisson", fraction=0.4, over_select=2.0).sample(_views(PEERS), Random(2))
    assert more.needed == -(-len(more.cohort) // 2)
    assert _build(policy="poisson", fraction=0.001).sample(_views(PEERS[:2]), Random(2)) == sampling.Draw(
        cohort=(), needed=0
    )


def test_an_unknown_policy_is_told_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="uniform"):
        _build(policy="unifrom")
