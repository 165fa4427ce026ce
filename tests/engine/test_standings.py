"""One broken site costs itself only: what is borne, who is set aside, for how long, and when the run pauses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.standings import (
    FAILURES_IN_ROW,
    LATENESS_IN_ROW,
    REFUSALS_IN_ROW,
    REST_SECONDS_MAX,
)
from coordinator.engine.state import (
    AggregationSkipped,
    AssignmentFailed,
    ResumeRequested,
    RoundStatus,
    RunStatus,
    UpdateRefused,
    WakeAt,
)
from coordinator.submission.checks import build_schedule
from muster.spec.model import RoundTable

RESUME = ResumeRequested(run_id="run")
OPEN = {"quorum": None, "grace_seconds": 5.0}


def break_down(world: Any, peer_id: str, error_id: str = "task.no_data", message: str = "no examples") -> Any:
    return world.send(
        AssignmentFailed(
            run_id="run",
            assignment_id=world.work(peer_id).assignment_id,
            error_id=error_id,
            message=message,
            traceback="",
            retry=False,
        )
    )


def refuse(world: Any, peer_id: str) -> None:
    assignment_id = world.work(peer_id).assignment_id
    world.send(
        UpdateRefused(run_id="run", assignment_id=assignment_id, error_id="update.not_finite", message="NaN")
    )


# -- the quorum -----------------------------------------------------------------------------------------------


@given(needed=st.integers(1, 500), more=st.integers(0, 500))
def test_a_quorum_left_open_bears_one_loss_and_a_fifth(needed: int, more: int) -> None:
    quorum = RoundTable().quorum_of(needed, needed + more)
    assert 1 <= quorum <= needed
    assert needed + more == 1 or quorum < needed + more
    assert quorum >= min(needed, 4) - 1
    assert quorum == RoundTable(quorum=0.8).quorum_of(needed, needed + more) or needed + more <= 4


@pytest.mark.parametrize(("peers", "quorum"), [("a", 1), ("ab", 1), ("abc", 2), ("abcd", 3), ("abcde", 4)])
def test_a_small_cohort_goes_on_without_one(make_world: Any, peers: str, quorum: int) -> None:
    world = make_world(peers=peers, round=OPEN)
    assert world.state.rounds[1].quorum == quorum
    if len(peers) > 1:
        break_down(world, "a", "worker.failed")
        world.deliver(peers[1:])
        assert world.aggregates() == [tuple(peers[1:])]


def test_a_quorum_of_the_spec_stays_what_it_says(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 0.8})
    assert world.state.rounds[1].quorum == 3


def test_the_bound_of_the_rule_still_holds_and_is_told(make_world: Any) -> None:
    world = make_world(peers="abc", rule_needs=3, round=OPEN)
    assert world.reasons("round.opened") == [
        "round 1 is open: 3 of 3 peers are asked, 3 updates are wanted, "
        "3 are a quorum (the rule needs n >= 3: n is 2)"
    ]


def test_the_last_of_few_is_waited_for_while_it_works(make_world: Any) -> None:
    world = make_world(peers="abc", round={**OPEN, "deadline_seconds": 60})
    world.deliver("ab")
    world.tick(50)
    assert world.state.rounds[1].status is RoundStatus.OPEN
    world.leave("c")  # once it is away the grace time is enough
    assert world.state.rounds[1].grace_until == world.now + 5
    world.tick(5)
    assert world.aggregates() == [("a", "b")]


def test_the_last_of_few_is_waited_for_until_the_deadline_at_most(make_world: Any) -> None:
    world = make_world(peers="ab", round={**OPEN, "deadline_seconds": 60, "grace_seconds": 0})
    world.deliver("a")
    assert world.state.rounds[1].status is RoundStatus.OPEN
    world.tick(60)
    assert world.aggregates() == [("a",)]


# -- who is set aside -----------------------------------------------------------------------------------------


def test_a_fault_of_ones_own_sets_aside_at_once(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 1.0})
    break_down(world, "b")
    assert world.reasons("standing.set_aside") == [
        "b is set aside and asked no more: no examples; once that is mended, start this peer anew, "
        "or: muster run resume run"
    ]
    round_ = world.state.rounds[2]  # at once: the cause of the skip is gone
    assert (round_.cohort, round_.needed, round_.quorum) == (("a", "c"), 2, 2)


@pytest.mark.parametrize("error_id", ["plugin.unknown", "plugin.broken"])
def test_a_package_that_is_missing_at_a_site_sets_it_aside_at_once(make_world: Any, error_id: str) -> None:
    world = make_world(peers="abc", round={"quorum": 1.0})
    break_down(world, "b", error_id, "there is no mechanism 'masks'")
    assert len(world.reasons("standing.set_aside")) == 1
    assert world.state.rounds[2].cohort == ("a", "c")


def test_data_that_cannot_be_read_once_are_read_again_at_once(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=9)
    for _ in range(3):
        break_down(world, "b", "task.data_failed", "OSError: Stale file handle")
        assert world.work("b").attempt == 2
        world.play_round("abc")
    assert (world.state.committed, world.state.skipped) == (3, 0)
    assert world.reasons("standing.set_aside") == []


def test_data_that_cannot_be_read_twice_in_a_row_set_aside_within_the_round(make_world: Any) -> None:
    world = make_world(peers="abc")
    break_down(world, "b", "task.data_failed", "OSError: no such file")
    break_down(world, "b", "task.data_failed", "OSError: no such file")
    assert world.reasons("standing.set_aside")[0].startswith("b is set aside and asked no more: OSError")
    assert world.state.rounds[2].cohort == ("a", "c")


def test_without_a_second_attempt_data_that_cannot_be_read_have_two_rounds(make_world: Any) -> None:
    world = make_world(peers="abc", round={**OPEN, "attempts_max": 1})
    for number in (1, 2):
        assert "b" in world.state.rounds[number].cohort
        break_down(world, "b", "task.data_failed", "OSError: no such file")
        world.play_round("ac")
    assert world.state.rounds[3].cohort == ("a", "c")


def test_where_no_site_can_read_its_data_the_run_pauses_after_the_second_look(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 0.3})
    for _ in range(2):
        for peer_id in "abc":
            break_down(world, peer_id, "task.data_failed", "OSError: no such file")
    assert (world.state.status, world.state.last_round) == (RunStatus.PAUSED, 1)
    assert "the task works at no site of round 1" in world.state.reason


def test_what_fails_the_same_way_again_sets_aside(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=9, round=OPEN)
    for _ in range(FAILURES_IN_ROW):
        assert world.reasons("standing.set_aside") == []
        break_down(world, "b", "worker.failed", "no such file")
        world.play_round("ac")
    assert len(world.reasons("standing.set_aside")) == 1
    assert world.state.rounds[3].cohort == ("a", "c")


def test_another_error_or_an_update_between_begins_the_row_anew(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=20, round=OPEN)
    for error_id in ("worker.failed", "task.not_finite", "worker.failed", "task.not_finite"):
        break_down(world, "b", error_id)
        world.play_round("ac")
        world.play_round("abc") if error_id == "worker.failed" else None
    for _ in range(3):
        break_down(world, "b", "worker.failed")
        world.play_round("ac")
        world.play_round("abc")
    assert world.reasons("standing.set_aside") == []


def test_refused_updates_in_a_row_set_aside(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=9, round=OPEN)
    for _ in range(REFUSALS_IN_ROW):
        assert world.reasons("standing.set_aside") == []
        refuse(world, "c")
        world.play_round("ab")
    assert world.reasons("standing.set_aside")[0].startswith("c is set aside and asked no more: NaN")


def test_a_liar_that_spoils_the_model_sets_nobody_aside(make_world: Any) -> None:
    """All honest sites then fail the same way, and only the liar delivers."""
    world = make_world(peers="abcdef", rounds=9, round={"quorum": 0.5, "skips_max": 9})
    for _ in range(4):
        for peer_id in "abcde":
            break_down(world, peer_id, "task.not_finite", "the loss is NaN")
            if not world.state.rounds:
                break
        assert world.reasons("standing.set_aside") == []
        world.tick(60)
    assert world.state.skipped_in_row == 4


def test_a_round_that_cannot_be_had_any_more_waits_to_see_whose_fault_it_is(make_world: Any) -> None:
    world = make_world(peers="abcde", rounds=9, round={"quorum": 0.8})
    break_down(world, "a", "worker.failed", "no such file")
    break_down(world, "b", "worker.failed", "no such file")
    assert world.tick(1).reason.endswith("and the rest will tell whether all fail or some")
    world.deliver("cd")
    assert "round 1 cannot reach its quorum any more" in world.reasons("round.skipped")[0]
    world.tick(1)
    break_down(world, "a", "worker.failed", "no such file")
    break_down(world, "b", "worker.failed", "no such file")
    world.deliver("cd")
    assert world.state.rounds[3].cohort == ("c", "d", "e")
    assert world.state.rounds[3].quorum == 3


def test_who_is_lost_late_or_killed_is_not_set_aside(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=9, round={**OPEN, "deadline_seconds": 10})
    for _ in range(4):
        world.fail("b", retry=True)
        world.leave("b")
        world.deliver("ac")
        world.tick(10)
        world.join("b", tick=False)
        world.aggregated()
    assert world.reasons("standing.set_aside") == []


def never_done(make_world: Any, peers: str = "abc", **tables: Any) -> Any:
    """A run with the rule that it has where its spec names none; its last peer is at work and never done."""
    world = make_world(peers=peers, started=False, aggregation={}, rounds=9, round=OPEN, **tables)
    world.schedule = build_schedule(world.state.spec)
    world.start()
    return world


def test_one_of_three_that_is_never_done_does_not_stop_a_run(make_world: Any) -> None:
    world = never_done(make_world)
    for number in range(1, LATENESS_IN_ROW + 1):
        assert (world.state.rounds[number].cohort, world.state.rounds[number].quorum) == (("a", "b", "c"), 3)
        assert world.reasons("standing.set_aside") == []
        world.deliver("ab")
        world.tick(60)
    assert world.reasons("standing.set_aside") == [
        "c is set aside and asked no more: not done within round.deadline_seconds, 60 s, in 2 rounds in a row that "
        "were skipped for want of it: give this peer more time (less other work, a faster device), or the next run "
        "a longer deadline; once that is mended, start this peer anew, or: muster run resume run"
    ]
    assert world.state.rounds[3].cohort == ("a", "b")
    assert world.state.warnings["faults.none"].reason.startswith("f is 0 with 2 peers asked")
    for _ in range(9):
        world.play_round("ab")
    assert (world.state.status, world.state.skipped) == (RunStatus.FINISHED, 2)
    assert world.state.reason.startswith("c is set aside: not done within round.deadline_seconds, 60 s")


def test_who_gives_up_late_work_itself_in_between_is_as_late(make_world: Any) -> None:
    world = never_done(make_world)
    world.deliver("ab")
    world.tick(60)
    break_down(world, "c", "worker.timeout", "job 'train' was not done after 60 s")
    world.deliver("ab")
    assert world.state.rounds[3].cohort == ("a", "b")


def test_who_was_late_and_then_delivers_begins_anew(make_world: Any) -> None:
    world = never_done(make_world)
    for _ in range(3):
        world.deliver("ab")
        world.tick(60)
        world.play_round("abc")
    assert world.reasons("standing.set_aside") == []


def test_who_is_late_in_rounds_that_are_committed_is_not_set_aside(make_world: Any) -> None:
    world = make_world(peers="abcd", rounds=20, round={"quorum": 0.75})
    for _ in range(3):
        for late in ("d", "cd", "d"):  # of which only the second round is skipped
            world.deliver("".join(peer_id for peer_id in "abcd" if peer_id not in late))
            world.tick(60)
            if late == "d":
                world.aggregated()
    assert (world.state.committed, world.state.skipped) == (6, 3)
    assert world.reasons("standing.set_aside") == []


def test_where_most_are_late_nobody_is_set_aside_and_the_pause_names_them(make_world: Any) -> None:
    world = make_world(peers="abc", round={"skips_max": 2})
    for _ in range(2):
        world.deliver("a")
        world.tick(60)
    assert world.reasons("standing.set_aside") == []
    assert world.state.status is RunStatus.PAUSED


def test_the_trusted_peer_is_not_set_aside_for_being_late(make_world: Any) -> None:
    trusting = {"rule": "fltrust", "trusted_peer": "c"}
    world = make_world(peers="abcd", aggregation=trusting, round={"quorum": 1.0, "skips_max": 3})
    for _ in range(3):
        world.deliver("abd")
        world.tick(60)
    assert world.reasons("standing.set_aside") == []
    assert world.state.reason.startswith("c: not done within round.deadline_seconds, 60 s; mend that")


def test_who_is_set_aside_is_not_asked_to_evaluate(make_world: Any) -> None:
    world = make_world(peers="abc", round=OPEN, evaluate={"every": 1, "on": ["peers"]})
    break_down(world, "b")
    world.play_round("ac")
    assert sorted(o for o in world.offered() if ".e1." in o) == ["run.e1.a.1", "run.e1.c.1"]


def test_it_counts_neither_for_f_nor_for_the_quorum(make_world: Any) -> None:
    share = {"rule": "median", "faults": 0.25}
    world = make_world(peers="abcd", more_than_2f=True, aggregation=share, round={"quorum": 0.5})
    break_down(world, "d")
    world.deliver("abc")
    world.aggregated()
    assert world.reasons("round.opened")[-1] == (
        "round 2 is open: 3 of 3 peers are asked, 3 updates are wanted, 2 are a quorum; f is 0 (0.25 of a cohort of 3)"
    )


# -- back again -----------------------------------------------------------------------------------------------


def test_a_daemon_that_starts_anew_is_asked_again(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=9, round=OPEN)
    break_down(world, "b")
    world.play_round("ac")
    world.leave("b")
    world.join("b")  # the same process, in a new session
    world.play_round("ac")
    world.restart()  # nor does the coordinator forget
    for peer_id in "abc":
        world.join(peer_id)
    world.play_round("ac")
    assert world.state.rounds[4].cohort == ("a", "c")
    world.join("b", instance="second")
    assert world.reasons("standing.taken_back") == ["b has started anew and is asked again"]
    world.play_round("ac")
    assert world.state.rounds[5].cohort == ("a", "b", "c")


def test_a_daemon_that_started_anew_while_the_coordinator_was_away_is_asked_again(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=9, round=OPEN)
    break_down(world, "b")
    world.restart()
    world.join("b", instance="second")
    assert world.reasons("standing.taken_back") == ["b has started anew and is asked again"]


def test_resume_asks_everybody_again_in_a_run_that_goes_on_too(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=9, round=OPEN)
    break_down(world, "b")
    world.play_round("ac")
    assert world.send(RESUME).reason == "b is asked again: on request"
    assert world.send(RESUME).reason == "the run is RUNNING, and nobody is set aside in it"
    world.play_round("ac")
    assert world.state.rounds[3].cohort == ("a", "b", "c")


def test_a_run_in_which_nobody_is_left_waits_and_says_so(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=1, round=OPEN)
    break_down(world, "a")
    break_down(world, "b")
    assert (world.state.status, world.state.rounds) == (RunStatus.RUNNING, {})
    assert world.state.reason == (
        "round 2 waits for peers: nobody is left of 2 that are active and connected; a and b are set aside: no examples"
    )
    assert world.tick(1000).transitions == ()
    world.join("a", instance="second")
    world.play_round("a")
    assert world.state.status is RunStatus.FINISHED
    assert world.state.reason == "b is set aside: no examples; all the same, all 1 rounds are committed"


# -- the pause ------------------------------------------------------------------------------------------------


def test_skips_follow_each_other_ever_more_slowly_and_then_the_run_pauses(make_world: Any) -> None:
    world = make_world(peers="ab", round={"skips_max": 9})
    began = world.now
    pauses = []
    for number in range(1, 10):
        world.deliver("ab")
        world.send(AggregationSkipped(run_id="run", round=number, reason_given="the disk is full"))
        if number < 9:
            (wake,) = world.ordered(WakeAt)
            assert world.tick((wake.at - world.now) / 2).transitions == ()
            pauses.append(wake.at - began)
            began = wake.at
            world.tick(wake.at - world.now)
    assert pauses == [1, 2, 4, 8, 16, 32, REST_SECONDS_MAX, REST_SECONDS_MAX]
    assert world.state.reason == (
        "round 9 was not aggregated: the disk is full; mend that, then: muster run resume run; "
        "the run is paused, since 9 rounds in a row were skipped (round.skips_max)"
    )


def test_time_that_the_round_took_is_not_waited_for_again(make_world: Any) -> None:
    world = make_world(peers="ab", round={"deadline_seconds": 30})
    world.tick(30)
    assert world.state.rounds[2].status is RoundStatus.OPEN


def test_more_peers_end_the_pause(make_world: Any) -> None:
    world = make_world(peers="ab", round={"quorum": 1.0})
    world.deliver("ab")
    world.send(AggregationSkipped(run_id="run", round=1, reason_given="no"))
    assert world.state.rounds == {}
    world.leave("b")
    world.join("b")  # it was there before
    assert world.state.rounds == {}
    world.join("c")
    assert world.state.rounds[2].cohort == ("a", "b", "c")


def test_who_is_set_aside_is_there_for_the_least_number_of_peers(make_world: Any) -> None:
    world = make_world(peers="abc", round={**OPEN, "peers_min": 3})
    break_down(world, "b")
    world.play_round("ac")
    assert world.state.rounds[2].cohort == ("a", "c")


def test_a_pause_outlives_a_restart(make_world: Any) -> None:
    world = make_world(peers="ab")
    world.deliver("ab")
    world.send(AggregationSkipped(run_id="run", round=1, reason_given="no"))
    until = world.state.rest.until
    world.restart()
    assert world.wakes() == [until]
    world.join("a")
    world.join("b")
    assert world.state.rounds == {}
    world.tick(until - world.now)
    assert world.state.rounds[2].status is RoundStatus.OPEN


def test_a_paused_run_names_cause_and_cure_first_and_goes_on_once_mended(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=2, round={"quorum": 1.0, "skips_max": 2})
    for _ in range(2):
        for peer_id in "ab":
            break_down(world, peer_id, "worker.failed", "FileNotFoundError: /no/such/file")
        world.deliver("c")
        world.tick(60)
    assert world.state.status is RunStatus.PAUSED
    assert world.state.reason.startswith(
        "a and b: FileNotFoundError: /no/such/file; mend that, then: muster run resume run; the run is paused"
    )
    world.send(RESUME)
    world.play_round("abc")
    world.play_round("abc")
    assert (world.state.status, world.state.reason) == (RunStatus.FINISHED, "all 2 rounds are committed")
