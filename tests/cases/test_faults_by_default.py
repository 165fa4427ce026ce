"""How many updates may be faulty where nobody says so: one at least, as soon as any rule can bear one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import aggregators
from coordinator.engine.decide import decide, new_run
from coordinator.engine.state import (
    ModelReady,
    ModelVersion,
    PeerStatus,
    PeerView,
    RunState,
    RunSubmitted,
)
from coordinator.submission.checks import build_schedule, cautions
from exchange import recipe
from muster.spec.model import RunSpec


def make_spec(**tables: Any) -> RunSpec:
    return RunSpec.model_validate({"task": "digits:Digits", "rounds": 3, **tables})


def opened(spec: RunSpec, peers: int) -> RunState:
    state = new_run(RunSubmitted(run_id="run", spec=spec, spec_toml="", request_id="q"), "run", 1.0).state
    views = {
        f"p{i}": PeerView(peer_id=f"p{i}", status=PeerStatus.ACTIVE, connected=True) for i in range(peers)
    }
    model = ModelVersion(version=0, round=0, digest="0", size_bytes=4, layout_digest="1")
    return decide(state, ModelReady(run_id="run", model=model), 2.0, views, build_schedule(spec)).state


def test_one_of_three_or_more_and_a_fifth_of_many() -> None:
    spec = make_spec()
    assert [spec.faults_of(cohort) for cohort in (1, 2, 3, 4, 5, 9, 10, 30)] == [0, 0, 1, 1, 1, 1, 2, 6]
    for cohort in range(1, 60):
        assert recipe.refuse(spec, cohort, cohort) is None
    assert make_spec(aggregation=spec.aggregation.model_dump()) == spec


@pytest.mark.parametrize(
    ("peers", "told"), [(4, "f is 1 (0.2 of a cohort of 4, but at least 1)"), (10, "f is 2 ")]
)
def test_a_round_tells_it_when_it_opens(peers: int, told: str) -> None:
    state = opened(make_spec(), peers)
    assert told in state.rounds[1].reason
    assert "faults.none" not in state.warnings


def test_where_no_rule_can_bear_one_the_run_is_warned() -> None:
    state = opened(make_spec(), 2)
    assert "f is 0 (0.2 of a cohort of 2)" in state.rounds[1].reason
    assert state.warnings["faults.none"].reason.startswith("f is 0 with 2 peers asked")
    assert opened(make_spec(aggregation={"faults": 0}), 2).warnings == {}


@pytest.mark.parametrize(
    ("tables", "warned"),
    [
        ({"sampling": {"count": 2}}, True),
        ({"round": {"peers_min": 2}}, True),
        ({"round": {"peers_min": 3}}, False),
        ({"sampling": {"count": 4}}, False),
        ({"sampling": {"count": 2}, "aggregation": {"faults": 0}}, False),
        ({"sampling": {"count": 2}, "aggregation": {"rule": "mean"}}, False),
        ({}, False),
    ],
)
def test_a_submission_that_tells_how_few_take_part_is_warned(tables: dict[str, Any], warned: bool) -> None:
    assert ("faults.none" in dict(cautions(make_spec(**tables)))) is warned


def test_what_the_spec_says_stays_what_it_says() -> None:
    assert make_spec(aggregation={"faults": 0.2}).faults_of(4) == 0
    assert make_spec(aggregation={"faults": 0}).faults_of(30) == 0
    assert make_spec(aggregation={"rule": "median"}).faults_of(30) == 0


def test_fewer_updates_than_are_asked_for_are_borne_too() -> None:
    """Over-selection asks for more than it wants, and f is for what it wants."""
    spec = make_spec(sampling={"over_select": 2.0})
    for cohort in range(2, 40):
        for wanted in range(-(-cohort // 2), cohort + 1):
            assert recipe.refuse(spec, wanted, cohort) is None, (wanted, cohort)
    halves = make_spec(round={"quorum": 0.5})  # the spec's own word on how many are enough
    assert [halves.faults_of(cohort) for cohort in (3, 4, 5)] == [0, 0, 1]
    few = make_spec(aggregation={"pre": ["bucketing:2"]})
    assert few.faults_of(4) == 0


def test_one_liar_of_four_does_not_ruin_the_default() -> None:
    generator = torch.Generator().manual_seed(3)
    honest = torch.ones(3, 50) + 0.1 * torch.randn(3, 50, generator=generator)
    updates = torch.cat([honest, torch.full((1, 50), -1e6)])
    spec = make_spec()
    found = aggregators.aggregate(
        updates, spec.aggregation.rule, spec.aggregation.pre, faults=spec.faults_of(4)
    )
    assert float((found.vector - honest.mean(0)).norm()) < 0.3 * float(honest.mean(0).norm())
