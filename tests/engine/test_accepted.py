"""A decision says whether its event was accepted, so that nobody reads the state again to learn it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.engine.decide import decide
from coordinator.engine.state import (
    AssignmentProgressed,
    AssignmentStatus,
    Event,
    PauseRequested,
    ResumeRequested,
    StopRequested,
    Tick,
    UpdateAdmitted,
)
from coordinator.membership import detector
from coordinator.membership.detector import Connected, Drain, Enrolled, HeartbeatSeen, Quarantine, Remove
from tests.engine.conftest import facts

PAUSE, RESUME = PauseRequested(run_id="run"), ResumeRequested(run_id="run")
LIMITS = detector.Limits(suspect_seconds=5, lost_seconds=20)


def admitted(world: Any, peer_id: str, update: Any) -> UpdateAdmitted:
    assignment_id = world.work(peer_id).assignment_id
    return UpdateAdmitted(run_id="run", assignment_id=assignment_id, update=update)


def test_an_update_is_accepted_once_and_so_is_what_repeats_it(make_world: Any) -> None:
    world = make_world()
    event = admitted(world, "a", facts("a", {}))
    assert world.send(event).accepted
    again = world.send(event)
    assert again.accepted and again.transitions == ()
    other = world.send(replace(event, update=replace(event.update, digest="other")))
    assert not other.accepted
    assert "has ended: it is DELIVERED" in other.reason


def test_an_update_for_a_round_that_is_over_is_not_accepted(make_world: Any) -> None:
    world = make_world()
    late = admitted(world, "a", facts("a", {}))
    world.play_round("abc")
    decision = world.send(late)
    assert not decision.accepted
    assert "belongs to no round or evaluation that is under way" in decision.reason


def test_commands_on_a_run_that_is_as_wanted_are_accepted_and_change_nothing(make_world: Any) -> None:
    world = make_world()
    assert world.send(RESUME).accepted and world.committed == []
    assert world.send(PAUSE).accepted and world.kinds() == ["run.paused"]
    assert world.send(PAUSE).accepted and world.committed == []
    assert world.send(RESUME).accepted and world.kinds()[0] == "run.resumed"


@pytest.mark.parametrize("event", [PAUSE, RESUME])
def test_a_run_that_has_no_model_yet_can_be_neither_paused_nor_resumed(make_world: Any, event: Event) -> None:
    decision = make_world(started=False).send(event)
    assert not decision.accepted
    assert "the run is QUEUED; only" in decision.reason


def test_what_does_not_fit_is_not_accepted(make_world: Any) -> None:
    world = make_world()
    step = AssignmentProgressed(run_id="run", assignment_id="run.9.a.1", status=AssignmentStatus.TRAINING)
    assert not world.send(step).accepted
    assert not decide(world.state, Tick(run_id="other"), world.now, world.peers, world.schedule).accepted
    assert world.send(Tick(run_id="run")).accepted
    assert world.send(StopRequested(run_id="run", reason="enough")).accepted
    world.checked = False
    assert not world.send(PAUSE).accepted


def enrolled(secret_hash: str) -> Enrolled:
    return Enrolled(peer_id="a", secret_hash=secret_hash, device="cpu", muster_version="0.1.0")


def test_a_name_is_enrolled_again_by_its_own_secret_alone() -> None:
    members = detector.Members()
    first = detector.decide(members, enrolled("own"), 1.0, LIMITS)
    again = detector.decide(first.members, enrolled("own"), 2.0, LIMITS)
    assert first.accepted and again.accepted and again.transitions == ()
    taken = detector.decide(first.members, enrolled("another"), 2.0, LIMITS)
    assert not taken.accepted
    assert taken.members is first.members
    assert taken.reason == "the name a belongs to another peer"
    removed = detector.decide(first.members, Remove(peer_id="a"), 3.0, LIMITS)
    assert not detector.decide(removed.members, enrolled("own"), 4.0, LIMITS).accepted
    assert detector.decide(removed.members, enrolled("another"), 4.0, LIMITS).accepted


def test_what_an_older_session_says_is_not_accepted() -> None:
    members = detector.decide(detector.Members(), enrolled("own"), 1.0, LIMITS).members
    for _ in range(2):
        connected = detector.decide(members, Connected(peer_id="a"), 2.0, LIMITS)
        members = connected.members
    assert not detector.decide(members, HeartbeatSeen(peer_id="a", epoch=1), 3.0, LIMITS).accepted
    assert detector.decide(members, HeartbeatSeen(peer_id="a", epoch=2), 3.0, LIMITS).accepted
    held = detector.decide(members, Quarantine(peer_id="a"), 4.0, LIMITS)
    assert detector.decide(held.members, Quarantine(peer_id="a"), 5.0, LIMITS).accepted
    assert not detector.decide(held.members, Drain(peer_id="a"), 5.0, LIMITS).accepted
