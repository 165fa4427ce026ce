from __future__ import annotations

from typing import Any

import pytest

from coordinator.engine import schedule
from coordinator.engine.decide import decide, new_run
from coordinator.engine.state import (
    Aggregate,
    AssignmentProgressed,
    AssignmentStatus,
    Cancel,
    EvaluateOwn,
    ModelFailed,
    Offer,
    OwnEvaluated,
    PauseRequested,
    PrepareModel,
    ResumeRequested,
    RoundStatus,
    RunStatus,
    RunSubmitted,
    StopRequested,
    Tick,
    UpdateAdmitted,
    WakeAt,
)
from coordinator.engine.synchronous import Synchronous
from coordinator.submission.checks import build_schedule
from exchange.facts import UpdateFacts
from muster.errors import ConfigError
from muster.spec.model import RunSpec, ScheduleTable
from muster.work import Work

PAUSE, RESUME = PauseRequested(run_id="run"), ResumeRequested(run_id="run")
STOP = StopRequested(run_id="run", reason="the data is wrong")


def test_a_new_run_is_queued_and_asks_for_its_model(make_world: Any) -> None:
    world = make_world(started=False, name="first")
    assert world.state.status is RunStatus.QUEUED
    assert world.effects == [PrepareModel(run_id="run")]
    row = world.row("run")
    assert (row["name"], row["task"], row["request_id"]) == ("first", "digits:Digits", "request")
    assert row["spec_digest"] == world.state.spec.digest
    assert world.tick().transitions == ()  # nothing opens without a model


def test_a_run_without_a_name_has_its_tasks() -> None:
    spec = RunSpec.model_validate({"task": "examples.digits:Digits", "rounds": 1})
    event = RunSubmitted(run_id="r", spec=spec, spec_toml="", request_id="q")
    (submitted,) = new_run(event, "r", 5.0).transitions
    assert (submitted.values["name"], submitted.at, submitted.before) == ("Digits", 5.0, None)


def test_a_run_commits_the_rounds_it_wants_and_finishes(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=2)
    world.play_round("ab")
    world.play_round("ab")
    assert world.kinds() == ["model.created", "round.committed", "run.finished"]
    assert (world.state.status, world.state.reason) == ("FINISHED", "all 2 rounds are committed")
    row = world.row("run")
    assert (row["committed"], row["model_version"], row["ended_at"]) == (2, 2, world.now)
    assert world.wakes() == []
    assert world.send(PAUSE).reason == "the run has ended: it is FINISHED"


def test_skipped_rounds_do_not_count_towards_those_wanted(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=2, round={"deadline_seconds": 5})
    world.play_round("ab")
    world.tick(5)
    world.play_round("ab")
    assert (world.state.status, world.state.committed, world.state.last_round) == ("FINISHED", 2, 3)


def test_an_initial_model_that_cannot_be_made_fails_the_run(make_world: Any) -> None:
    world = make_world(started=False)
    world.send(ModelFailed(run_id="run", error="no module named digits"))
    assert world.state.status is RunStatus.FAILED
    assert world.state.reason == "the initial model could not be made: no module named digits"
    assert world.row("run")["model_version"] is None


def test_a_paused_run_ends_its_round_and_opens_no_other(make_world: Any) -> None:
    world = make_world(peers="ab")
    world.deliver("a")
    world.send(PAUSE)
    assert world.state.reason == "paused on request: no new round opens; round 1 goes on to its end"
    world.fail("b", retry=True)
    assert world.offered() == ["run.1.b.2"]  # the round goes on in full
    world.deliver("b")
    world.aggregated()
    assert (world.state.status, world.state.committed, world.state.rounds) == ("PAUSED", 1, {})
    assert world.tick(1000).transitions == ()
    again = world.send(PAUSE)
    assert (again.accepted, again.reason) == (True, "the run is PAUSED already")
    world.send(RESUME)
    assert world.kinds()[:3] == ["run.resumed", "round.planned", "round.opened"]


def test_a_run_paused_in_its_last_round_finishes(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=1)
    world.send(PAUSE)
    world.play_round("ab")
    assert world.state.status is RunStatus.FINISHED


def test_stop_cancels_what_is_live(make_world: Any) -> None:
    world = make_world(peers="abc", evaluate={"every": 1, "on": ["coordinator", "peers"]})
    world.play_round("abc")
    world.deliver("a")
    world.send(STOP)
    assert world.state.status is RunStatus.CANCELLED
    assert world.state.reason == "cancelled: the data is wrong"
    assert sorted(c.assignment_id for c in world.ordered(Cancel)) == [
        "run.2.b.1",
        "run.2.c.1",
        *[f"run.e1.{peer}.1" for peer in "abc"],
    ]
    assert (world.row("round", number=2)["state"], world.row("evaluation")["state"]) == ("FAILED", "FINISHED")
    assert world.reasons("round.failed") == ["round 2 ends with its run: cancelled: the data is wrong"]


@pytest.mark.parametrize("started", [False, True])
def test_stop_is_possible_in_every_state_that_has_not_ended(make_world: Any, started: bool) -> None:
    world = make_world(peers="ab", started=started)
    if started:
        world.deliver("ab")
        assert world.state.rounds[1].status is RoundStatus.AGGREGATING
        result = world.result(1)
        world.send(PAUSE)
    world.send(StopRequested(run_id="run", reason=""))
    assert (world.state.status, world.state.reason) == ("CANCELLED", "cancelled on request")
    if started:
        assert world.send(result).reason == "the run has ended: it is CANCELLED"


# -- restarts --------------------------------------------------------------------------------------------


def test_a_restart_gives_the_time_away_back_and_offers_again_what_is_live(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 0.6, "deadline_seconds": 60, "grace_seconds": 10})
    progressed = AssignmentProgressed(
        run_id="run", assignment_id="run.1.b.1", status=AssignmentStatus.TRAINING
    )
    world.send(progressed)
    world.deliver("a")
    world.now += 10_000
    world.restart()
    assert world.kinds() == ["round.restored"]
    assert world.state.rounds[1].deadline_at == world.now + 60
    assert world.reasons("round.restored") == [
        "round 1 goes on after a restart of the coordinator: it has 60 s again"
    ]
    assert world.offered() == ["run.1.b.1", "run.1.c.1"]
    assert world.ordered(Offer)[0].assignment.status is AssignmentStatus.TRAINING
    assert world.wakes() == [world.now + 60]
    world.deliver("b")
    grace_until = world.now + 10
    world.now += 500
    world.restart()
    assert world.state.rounds[1].grace_until == world.now + 10 > grace_until
    world.tick(10)
    assert world.aggregates() == [("a", "b")]


def test_a_restart_orders_an_aggregation_again_and_its_result_counts_once(make_world: Any) -> None:
    world = make_world(peers="ab")
    world.deliver("ab")
    before = world.ordered(Aggregate)
    world.restart()
    assert (world.ordered(Aggregate), world.committed) == (before, [])
    first = world.result(1)
    world.send(first)
    world.restart()
    assert world.ordered(Aggregate) == []
    assert world.send(first).transitions == ()
    assert world.state.committed == 1


def test_a_restart_asks_again_for_a_model_that_was_not_made(make_world: Any) -> None:
    world = make_world(started=False)
    world.restart()
    assert world.effects == [PrepareModel(run_id="run")]


def test_a_restart_evaluates_again_the_version_that_was_asked_for(make_world: Any) -> None:
    world = make_world(peers="ab", evaluate={"every": 1, "on": ["coordinator", "peers"]})
    world.play_round("ab")
    world.play_round("ab")
    world.now += 10_000
    world.restart()
    assert [order.model.version for order in world.ordered(EvaluateOwn)] == [1, 2]
    assert sorted(world.offered()) == [
        "run.3.a.1",
        "run.3.b.1",
        *[f"run.e{v}.{peer}.1" for v in (1, 2) for peer in "ab"],
    ]
    assert {e.deadline_at for e in world.state.evaluations.values()} == {world.now + 60}


def test_a_paused_run_is_paused_after_a_restart(make_world: Any) -> None:
    world = make_world(peers="ab")
    world.send(PAUSE)
    world.play_round("ab")
    world.restart()
    world.join("a")
    world.join("b")
    assert (world.state.status, world.state.rounds) == ("PAUSED", {})


# -- schedules -------------------------------------------------------------------------------------------


def test_the_schedule_is_found_by_its_name() -> None:
    spec = RunSpec.model_validate({"task": "t:T", "rounds": 1})
    assert isinstance(schedule.build(spec, lambda n, cohort: None), Synchronous)
    with pytest.raises(ConfigError, match="synchronos"):
        schedule.build(
            spec.model_copy(update={"schedule": ScheduleTable(name="synchronos")}), lambda n, cohort: None
        )


def test_a_run_has_the_bound_of_its_own_rule(make_world: Any) -> None:
    world = make_world(peers="", aggregation={"rule": "trimmed-mean", "faults": 1})
    peers, bound = make_world(peers="ab").peers, build_schedule(world.state.spec)
    waiting = decide(world.state, Tick(run_id="run"), world.now, peers, bound)
    assert waiting.state.reason == (
        "round 1 waits for more peers, 2 are active and connected: trimmed-mean needs n > 2f: n is 2, f is 1"
    )
    enough = decide(world.state, Tick(run_id="run"), world.now, make_world(peers="abc").peers, bound)
    assert enough.state.rounds[1].cohort == ("a", "b", "c")


class Lenient(Synchronous):
    """Closes rounds without calling back who is still at work."""

    def next(self, state: Any, now: float, peers: Any) -> list[schedule.Action]:
        found = super().next(state, now, peers)
        return [action for action in found if not isinstance(action, schedule.ExpireWork)]


def test_what_is_aggregated_is_settled_when_the_round_closes(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 0.6}, started=False)
    world.schedule = Lenient(world.state.spec, refuse=lambda n, cohort: None)
    world.start()
    world.deliver("ab")
    assert world.deliver("c").reason == "round 1 is AGGREGATING: what it aggregates is settled"
    world.aggregated()
    assert [c.assignment_id for c in world.ordered(Cancel)] == ["run.1.c.1"]  # no work outlives its round
    assert "assignment.expired" in world.kinds()


class Eager:
    """Opens rounds one for each peer, on whatever is newest, and closes each when its update is there."""

    def next(self, state: Any, now: float, peers: Any) -> list[schedule.Action]:
        busy = set()
        aggregating = any(r.status is RoundStatus.AGGREGATING for r in state.rounds.values())
        for round_ in state.rounds.values():
            busy |= set(round_.cohort)
            if not round_.assignments:
                work = schedule.OfferWork(
                    round=round_.number,
                    peer_ids=round_.cohort,
                    work=Work(role="train", base=round_.base_version),
                    reason="free",
                )
                return [work]
            if round_.delivered and round_.status is RoundStatus.OPEN and not aggregating:
                return [schedule.CloseRound(round=round_.number, reason="its update is there")]
        if state.committed >= state.spec.rounds:
            rest = [schedule.SkipRound(round=n, reason="enough") for n in state.rounds]
            return [*rest, schedule.Finish(reason="enough rounds")]
        return [
            *(
                schedule.OpenRound(
                    cohort=(peer_id,),
                    needed=1,
                    quorum=1,
                    base_version=state.model.version,
                    deadline_at=now + 60,
                    reason=f"{peer_id} is free",
                )
                for peer_id in sorted(set(peers) - busy)
            ),
            *([] if set(peers) - busy else [schedule.Wait(until=now + 5, reason="all are busy")]),
        ]


def test_an_asynchronous_schedule_fits_the_engine(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=3, started=False)
    world.schedule = Eager()
    world.start()
    assert sorted(world.state.rounds) == [1, 2, 3]
    assert WakeAt(run_id="run", at=world.now + 5) in world.effects

    def deliver(assignment_id: str) -> None:
        peer_id = assignment_id.split(".")[2]
        facts = UpdateFacts(digest=peer_id, size_bytes=1, dense_bytes=1, examples=1, norm=1.0)
        world.send(UpdateAdmitted(run_id="run", assignment_id=assignment_id, update=facts))

    deliver("run.2.b.1")
    deliver("run.1.a.1")  # while round 2 is aggregating
    world.aggregated()
    assert world.aggregates() == [("a",)]
    assert world.state.rounds[4].base_version == 1  # b starts from the version it has made
    assert world.state.rounds[3].base_version == 0  # c is still at the first one
    assert sorted(world.state.models) == [0, 1]
    world.aggregated()
    deliver("run.4.b.1")
    world.aggregated()
    assert (world.state.status, world.state.committed) == (RunStatus.FINISHED, 3)


def test_own_evaluation_of_an_ended_run_is_ignored(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=1, evaluate={"every": 1})
    world.play_round("ab")
    world.send(STOP)
    late = OwnEvaluated(run_id="run", version=1, metrics={"loss": 1.0})
    assert world.send(late).reason == "the run has ended: it is CANCELLED"
