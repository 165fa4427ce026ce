"""What an offer tells a peer of the rounds before."""

from __future__ import annotations

from typing import Any

from coordinator.engine.assignments import live_offers
from coordinator.engine.state import UpdateAdmitted
from coordinator.rpc.convert import membership as convert
from exchange.facts import UpdateFacts


def test_an_evaluation_is_told_after_which_training_its_site_has_kept_what_it_keeps(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=2, evaluate={"every": 1, "on": ["peers"]})
    facts = UpdateFacts(digest="u", size_bytes=10, dense_bytes=40, examples=5, norm=1.0)
    for peer in "abc":
        world.send(UpdateAdmitted(run_id="run", assignment_id=f"run.1.{peer}.1", update=facts))
    world.aggregated()
    state = world.state
    offers = [
        convert.offer(state, each.assignment, state.models[each.assignment.work.base], 1.0).offer
        for each in live_offers(state)
        if each.assignment.evaluation
    ]
    assert offers
    assert {offer.counted_round for offer in offers} == {1}
