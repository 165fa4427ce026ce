"""Loading data has a time of its own, which is not taken from the round's."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.engine.assignments import live_offers
from coordinator.engine.explain import explain
from coordinator.engine.state import (
    AssignmentFailed,
    AssignmentProgressed,
    AssignmentStatus,
    OwnEvaluated,
    OwnPreparing,
)

ROUND = {"deadline_seconds": 10, "prepare_seconds": 100, "grace_seconds": 2}


def said(world: Any, status: str, *peer_ids: str) -> None:
    for peer_id in peer_ids:
        assignment_id = world.work(peer_id).assignment_id
        world.send(
            AssignmentProgressed(run_id="run", assignment_id=assignment_id, status=AssignmentStatus(status))
        )


def why(world: Any) -> Any:
    return explain(world.state, world.peers, world.now, lambda _: 0)


@pytest.fixture
def slow(make_world: Any) -> Any:
    """Three peers, all needed; two train and c loads its data."""
    world = make_world(peers="abc", round=ROUND)
    said(world, "TRAINING", "a", "b")
    said(world, "PREPARING", "c")
    return world


def test_a_round_below_its_quorum_waits_for_who_prepares_and_gives_it_the_whole_deadline(slow: Any) -> None:
    slow.deliver("ab")
    slow.tick(40)
    assert slow.kinds() == []
    assert slow.decision.reason == (
        "round 1 is open: 2 of 3 updates are delivered, 3 are a quorum, and 1 peer prepares"
    )
    assert "c is preparing (loading its data) since 40 s; offered 40 s ago" in why(slow).details
    assert why(slow).sentence.endswith("1 of them is preparing (loading data), for 60 s more at most")
    said(slow, "TRAINING", "c")
    assert slow.wakes() == [slow.now + 10]
    slow.tick(9)
    assert slow.kinds() == []
    slow.deliver("c")
    assert slow.kinds() == ["assignment.delivered", "round.aggregating"]


def test_a_few_peers_wait_for_the_last_to_prepare_though_their_quorum_is_there(make_world: Any) -> None:
    world = make_world(peers="abc", round={**ROUND, "quorum": None})
    said(world, "TRAINING", "a", "b")
    said(world, "PREPARING", "c")
    world.deliver("ab")  # a quorum of three peers, of which one may fail
    world.tick(90)
    assert world.kinds() == []
    world.tick(10)
    assert world.kinds()[:2] == ["assignment.expired", "round.aggregating"]


def test_who_has_prepared_and_is_late_costs_the_round_after_its_own_deadline(slow: Any) -> None:
    slow.deliver("ab")
    slow.now += 40
    said(slow, "TRAINING", "c")
    slow.tick(10)
    assert slow.kinds()[:2] == ["assignment.expired", "round.skipped"]


def test_who_does_not_prepare_in_its_time_is_given_up(slow: Any) -> None:
    slow.deliver("ab")
    assert slow.now + 100 in [at for at in _deadlines(slow) if at > slow.now]
    slow.tick(100)
    assert slow.kinds()[:2] == ["assignment.expired", "round.skipped"]
    assert "c had not prepared (loaded the data) for round 1 within round.prepare_seconds, 100 s" in (
        slow.reasons("assignment.expired")
    )


def test_a_failure_while_preparing_is_not_waited_for(slow: Any) -> None:
    slow.deliver("ab")
    slow.tick(40)
    slow.fail("c", retry=False)
    assert "round.skipped" in slow.kinds()
    assert "c failed its work" in slow.reasons("round.skipped")[0]


def test_with_its_quorum_a_round_closes_as_always(make_world: Any) -> None:
    world = make_world(peers="abc", round={**ROUND, "quorum": 0.6})
    said(world, "PREPARING", "c")
    world.deliver("ab")
    world.tick(2)
    assert world.kinds() == ["assignment.expired", "round.aggregating"]
    world.aggregated()
    assert world.work("c").status == "OFFERED"  # the next round asks it again


def test_a_trusted_peer_that_prepares_is_waited_for(make_world: Any) -> None:
    world = make_world(
        peers="abc", round={**ROUND, "quorum": 0.6}, aggregation={"rule": "fltrust", "trusted_peer": "c"}
    )
    said(world, "PREPARING", "c")
    world.deliver("ab")
    world.tick(50)
    assert world.kinds() == []
    said(world, "TRAINING", "c")
    world.deliver("c")
    assert "round.aggregating" in world.kinds()


def test_an_offer_that_stands_tells_the_time_that_its_work_has(slow: Any) -> None:
    def left() -> list[float]:
        return [offer.deadline_at - slow.now for offer in live_offers(slow.state)]

    slow.now += 4
    assert left() == [6, 6, 96]
    said(slow, "TRAINING", "c")
    assert left() == [6, 6, 10]


def test_a_restart_of_the_coordinator_gives_the_time_back(slow: Any) -> None:
    slow.now += 1000
    slow.restart()
    slow.tick(99)
    assert slow.state.rounds[1].status == "OPEN"
    assert slow.work("c").status == "PREPARING"
    slow.tick(1)
    assert "round.skipped" in slow.kinds()


def test_a_clock_that_rings_at_a_deadline_which_waits_is_not_set_again_at_once(slow: Any) -> None:
    slow.tick(10)
    assert all(at > slow.now for at in slow.wakes())


def test_an_evaluation_waits_for_who_prepares(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=1, evaluate={"every": 1, "on": ["peers"]}, round=ROUND)
    world.play_round("ab")
    world.evaluated("a", 1, {"loss": 1.0}, 1)
    progressed = {"run_id": "run", "assignment_id": "run.e1.b.1"}
    world.send(AssignmentProgressed(**progressed, status=AssignmentStatus.PREPARING))
    world.tick(50)
    assert world.kinds() == []
    assert "b is preparing (loading its data) since 50 s to evaluate version 1; offered 50 s ago" in (
        why(world).details
    )
    world.send(AssignmentProgressed(**progressed, status=AssignmentStatus.TRAINING))
    world.tick(9)
    assert world.kinds() == []
    world.tick(1)
    assert world.kinds() == ["run.warned", "assignment.expired", "evaluation.finished", "run.finished"]


def test_the_coordinators_own_loading_is_not_taken_from_the_evaluation(make_world: Any) -> None:
    world = make_world(peers="a", rounds=1, evaluate={"every": 1}, round=ROUND)
    world.play_round("a")
    world.send(OwnPreparing(run_id="run", version=1, done=False))
    assert world.kinds() == ["evaluation.postponed"]
    world.tick(50)
    assert world.kinds() == []
    world.send(OwnPreparing(run_id="run", version=1, done=True))
    world.tick(9)
    assert world.kinds() == []
    world.send(OwnEvaluated(run_id="run", version=1, metrics={"loss": 1.0}))
    assert world.kinds()[-1] == "run.finished"


def _deadlines(world: Any) -> frozenset[float]:
    from coordinator.engine.decision_builder import deadlines

    return deadlines(world.state)


@pytest.mark.parametrize(("error_id", "state"), [("task.bad_loss", "PAUSED"), ("worker.failed", "RUNNING")])
def test_a_task_that_passes_its_trial_nowhere_pauses_the_run_at_once(
    make_world: Any, error_id: str, state: str
) -> None:
    world = make_world(peers="ab", round={**ROUND, "quorum": 0.5})
    for peer_id in "ab":
        world.send(
            AssignmentFailed(
                run_id="run",
                assignment_id=f"run.1.{peer_id}.1",
                error_id=error_id,
                message="the task's loss is a float and no tensor",
                traceback="",
                retry=False,
            )
        )
    assert world.state.status == state
    if state == "PAUSED":
        assert world.state.reason.startswith(
            "a and b: the task's loss is a float and no tensor; mend that, then: "
        )
        assert world.state.reason.endswith("since the task works at no site of round 1")
