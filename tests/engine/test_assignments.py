from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.engine.assignments import live_offers
from coordinator.engine.state import (
    AssignmentEvaluated,
    AssignmentFailed,
    AssignmentProgressed,
    AssignmentStatus,
    Cancel,
    ModelFailed,
    ModelReady,
    ModelVersion,
    OwnEvaluated,
    PauseRequested,
    PeerGone,
    PeerStatus,
    PeerView,
    ResumeRequested,
    Tick,
    UpdateAdmitted,
    UpdateRefused,
)
from exchange.facts import UpdateFacts

INITIAL = ModelVersion(version=0, round=0, digest="model-0", size_bytes=100, layout_digest="layout")
FACTS = UpdateFacts(digest="d", size_bytes=1, dense_bytes=1, examples=1, norm=1.0)


def _progress(assignment_id: str, status: str) -> AssignmentProgressed:
    return AssignmentProgressed(run_id="run", assignment_id=assignment_id, status=AssignmentStatus(status))


def _refused(assignment_id: str) -> UpdateRefused:
    return UpdateRefused(
        run_id="run", assignment_id=assignment_id, error_id="update.not_finite", message="NaN in 'w'"
    )


def test_progress_goes_forward_only_and_may_leave_steps_out(make_world: Any) -> None:
    world = make_world(peers="ab")
    for status in ("ACCEPTED", "UPLOADING"):
        world.send(_progress("run.1.a.1", status))
        assert world.kinds() == [f"assignment.{status.lower()}"]
        assert world.effects == []
    assert world.decision.reason == "a is uploading its work for round 1"
    assert world.send(_progress("run.1.a.1", "TRAINING")).reason == "run.1.a.1 is UPLOADING already"
    assert (
        world.send(_progress("run.1.b.1", "DELIVERED")).reason == "DELIVERED is not a step of work under way"
    )


def test_a_failure_that_may_be_retried_is_offered_again_at_once(make_world: Any) -> None:
    world = make_world(peers="ab", round={"attempts_max": 2})
    world.fail("a", retry=True)
    assert world.kinds() == ["assignment.lost", "assignment.offered"]
    assert world.offered() == ["run.1.a.2"]
    assert world.row("assignment", assignment_id="run.1.a.1")["traceback"] == "Traceback ..."
    told = world.rows.log[-2]
    assert told.reason == "a failed its work for round 1: the worker was killed by signal 9"
    assert (told.data["error_id"], told.data["traceback"]) == ("worker.crashed", "Traceback ...")
    world.deliver("ab")
    assert [a.assignment_id for a in world.state.rounds[1].delivered] == ["run.1.a.2", "run.1.b.1"]


def test_a_failed_attempt_waits_for_a_peer_that_is_not_there(make_world: Any) -> None:
    world = make_world(peers="ab")
    world.peers["a"] = PeerView(peer_id="a", status=PeerStatus.SUSPECT, connected=False)
    world.fail("a", retry=True)
    assert world.offered() == []
    assert world.state.rounds[1].status == "OPEN"
    world.join("a")
    assert world.offered() == ["run.1.a.2"]


def test_attempts_are_bounded_and_the_round_ends_when_the_quorum_cannot_come(make_world: Any) -> None:
    world = make_world(peers="abc", round={"attempts_max": 2})
    world.fail("a", retry=True)
    world.fail("a", retry=True)
    world.deliver("b")
    assert world.reasons("round.skipped") == [
        "round 1 cannot reach its quorum any more: 1 of 3 updates are delivered, 3 are a quorum, 1 can still come; "
        "a failed its work for round 1: the worker was killed by signal 9; "
        "a failed its work for round 1: the worker was killed by signal 9"
    ]


@pytest.mark.parametrize("refusal", [False, True])
def test_a_failure_for_good_lowers_what_can_come(make_world: Any, refusal: bool) -> None:
    world = make_world(peers="abc", round={"quorum": 0.6, "grace_seconds": 30})
    if refusal:
        world.send(_refused("run.1.a.1"))
        assert world.decision.reason == "the update of a for round 1 was refused: NaN in 'w'"
        assert world.row("assignment", assignment_id="run.1.a.1")["error_id"] == "update.not_finite"
    else:
        world.fail("a", retry=False)
    assert world.offered() == []
    world.deliver("bc")
    assert "closes since nobody else can deliver" in world.decision.reason  # no grace to wait for
    assert world.aggregates() == [("b", "c")]


def test_the_last_failure_closes_a_round_in_its_grace_time(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 0.6, "grace_seconds": 30})
    world.deliver("ab")
    world.fail("c", retry=False)
    assert world.aggregates() == [("a", "b")]


def test_a_lost_peer_that_comes_back_in_time_is_asked_again(make_world: Any) -> None:
    world = make_world(peers="ab", round={"deadline_seconds": 60})
    world.deliver("b")
    world.leave("a")
    assert world.kinds() == ["assignment.lost"]
    assert world.decision.reason == "a lost its work for round 1: it is LOST"
    assert world.row("assignment", assignment_id="run.1.a.1")["retry"] is True
    world.now += 59
    world.join("a")
    assert world.offered() == ["run.1.a.2"]
    world.deliver("a")
    assert world.aggregates() == [("a", "b")]


def test_a_lost_peer_that_stays_away_costs_the_round_its_quorum_only_at_the_deadline(make_world: Any) -> None:
    world = make_world(peers="ab")
    world.deliver("b")
    world.leave("a")
    world.now += 60
    world.tick()
    assert "below its quorum at its deadline" in world.reasons("round.skipped")[0]


@pytest.mark.parametrize("status", [PeerStatus.QUARANTINED, PeerStatus.REVOKED, PeerStatus.DRAINING])
def test_work_of_a_peer_that_gets_none_any_more_is_not_waited_for(
    make_world: Any, status: PeerStatus
) -> None:
    world = make_world(peers="abc", round={"quorum": 0.6, "grace_seconds": 30})
    world.deliver("ab")
    world.leave("c", status)
    assert world.kinds() == ["assignment.lost", "round.aggregating"]
    assert world.aggregates() == [("a", "b")]


@pytest.mark.parametrize("status", [PeerStatus.QUARANTINED, PeerStatus.REVOKED])
def test_an_update_of_a_peer_that_is_shut_out_is_refused(make_world: Any, status: PeerStatus) -> None:
    world = make_world(peers="ab")
    world.peers["a"] = PeerView(peer_id="a", status=status, connected=True)
    decision = world.deliver("a")
    assert (decision.transitions, decision.reason) == ((), f"a is {status}: its updates are refused")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (_progress("run.1.z.1", "TRAINING"), "run.1.z.1 belongs to no round or evaluation that is under way"),
        (_progress("run.1.a.1", "TRAINING"), "run.1.a.1 has ended: it is DELIVERED"),
        (
            UpdateAdmitted(run_id="run", assignment_id="run.1.a.1", update=FACTS),
            "run.1.a.1 has ended: it is DELIVERED",
        ),
        (
            UpdateAdmitted(run_id="run", assignment_id="run.0.a.1", update=FACTS),
            "run.0.a.1 belongs to no round or evaluation that is under way",
        ),
        (_refused("run.1.a.1"), "run.1.a.1 has ended: it is DELIVERED"),
        (
            AssignmentFailed(
                run_id="run", assignment_id="run.1.a.1", error_id="e", message="m", traceback="", retry=True
            ),
            "run.1.a.1 has ended: it is DELIVERED",
        ),
        (
            AssignmentEvaluated(run_id="run", assignment_id="run.1.b.1", metrics={}, examples=1),
            "run.1.b.1 trains and has no metrics of an evaluation to report",
        ),
        (PeerGone(run_id="run", peer_id="z", reason="it is LOST"), "z holds no work of this run"),
        (PeerGone(run_id="run", peer_id="a", reason="it is LOST"), "a holds no work of this run"),
        (ModelFailed(run_id="run", error="x"), "the run is RUNNING and has its initial model already"),
        (
            OwnEvaluated(run_id="run", version=3, metrics={}),
            "no evaluation of version 3 waits for the coordinator",
        ),
        (ResumeRequested(run_id="run"), "the run is RUNNING, and nobody is set aside in it"),
        (Tick(run_id="other"), "the event is meant for run other"),
    ],
)
def test_events_that_do_not_fit_are_ignored_with_a_reason(make_world: Any, event: Any, reason: str) -> None:
    world = make_world(peers="ab")
    world.deliver("a")
    before = world.state
    decision = world.send(event)
    assert (decision.reason, decision.transitions, decision.effects) == (reason, (), ())
    assert world.state is before


def test_a_delivery_after_the_round_was_closed_does_not_count(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 0.5})
    world.deliver("ab")
    decision = world.deliver("c")
    assert decision.reason == "run.1.c.1 has ended: it is EXPIRED"


def test_a_second_initial_model_is_ignored(make_world: Any) -> None:
    world = make_world(peers="ab")
    model = world.state.model
    assert world.send(ModelReady(run_id="run", model=model)).reason == (
        "the run is RUNNING and has its initial model already"
    )


def test_standing_offers_are_those_of_work_that_has_not_ended(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 0.9})
    world.deliver("a")
    world.send(_progress("run.1.b.1", "TRAINING"))
    assert [o.assignment.assignment_id for o in live_offers(world.state)] == ["run.1.b.1", "run.1.c.1"]
    assert [o.assignment.peer_id for o in live_offers(world.state, "c")] == ["c"]
    assert live_offers(world.state, "c")[0].deadline_at == world.state.rounds[1].deadline_at


def test_what_peers_write_into_events_is_bounded(make_world: Any) -> None:
    world = make_world(peers="ab")
    world.send(
        AssignmentFailed(
            run_id="run",
            assignment_id="run.1.a.1",
            error_id="worker.failed",
            message="m" * 10**6,
            traceback="t" * 10**6 + "the end",
            retry=True,
        )
    )
    data = world.rows.log[-2].data
    assert len(data["message"]) <= 1_000
    assert len(data["traceback"]) <= 16_000
    assert data["traceback"].endswith("the end")


def test_a_cancel_names_what_and_why(make_world: Any) -> None:
    world = make_world(peers="ab", round={"deadline_seconds": 5})
    world.send(PauseRequested(run_id="run"))
    world.tick(5)
    cancels = world.ordered(Cancel)
    assert [c.assignment_id for c in cancels] == ["run.1.a.1", "run.1.b.1"]
    assert {c.reason for c in cancels} == {"round 1 is skipped"}


def _delivered(world: Any, peer_id: str, source_digest: str) -> Any:
    update = replace(FACTS, source_digest=source_digest)
    work = world.work(peer_id).assignment_id
    return world.send(UpdateAdmitted(run_id="run", assignment_id=work, update=update))


def test_a_peer_with_other_source_code_is_told_of_once_and_again_when_it_changes(make_world: Any) -> None:
    world = make_world(peers="ab", started=False, rounds=9)
    world.send(ModelReady(run_id="run", model=INITIAL, source_digest="1" * 64))
    assert world.row("run", run_id="run")["source_digest"] == "1" * 64
    for number, (digest, warned) in enumerate(
        [("1", False), ("", False), ("2", True), ("2", False), ("3", True)], 1
    ):
        _delivered(world, "a", digest * 64)
        assert ("run.warned" in world.kinds()) is warned, number
        work = f"run.{number}.a.1"
        assert world.row("assignment", assignment_id=work)["source_digest"] == digest * 64
        _delivered(world, "b", "1" * 64)
        assert "run.warned" not in world.kinds()
        world.aggregated()
    told = [warning.reason for warning in world.state.warnings.values()]
    assert [("a works with other source code" in one) for one in told] == [True, True]
    assert "(digest 222222222222)" in told[0] and "(111111111111)" in told[0]


def test_who_wants_to_hear_nothing_of_source_code_hears_nothing(make_world: Any) -> None:
    world = make_world(peers="ab", started=False, task_sources="ignore")
    world.send(ModelReady(run_id="run", model=INITIAL, source_digest="1" * 64))
    _delivered(world, "a", "2" * 64)
    assert not world.state.warnings
