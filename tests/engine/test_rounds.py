from __future__ import annotations

from typing import Any

import pytest

from coordinator.engine.state import AggregationSkipped, Cancel, ResumeRequested, RoundStatus, RunStatus


def test_a_round_is_planned_opened_and_offered_in_one_decision(make_world: Any) -> None:
    world = make_world(peers="abc")
    assert world.kinds() == [
        "model.created",
        "run.started",
        "round.planned",
        "round.opened",
        *["assignment.offered"] * 3,
    ]
    assert world.offered() == ["run.1.a.1", "run.1.b.1", "run.1.c.1"]
    assert world.decision.reason == "c is asked to train for round 1: the round is open"
    round_ = world.state.rounds[1]
    assert (round_.status, round_.cohort, round_.needed, round_.quorum) == ("OPEN", ("a", "b", "c"), 3, 3)
    assert round_.deadline_at == world.now + 60
    assert world.wakes() == [world.now + 60]


@pytest.mark.parametrize(
    ("peers", "tables", "reason"),
    [
        ("", {}, "round 1 waits for peers: 0 of 1 are active and connected"),
        (
            "ab",
            {"round": {"peers_min": 3}},
            "round 1 waits for peers: 2 of 3 are active and connected",
        ),
        (
            "abc",
            {"rule_needs": 4},
            "round 1 waits for more peers, 3 are active and connected: the rule needs n >= 4: n is 3",
        ),
        (
            "abcdef",
            {"rule_needs": 4, "sampling": {"fraction": 0.5}},
            "round 1 waits for more peers, 6 are active and connected: the rule needs n >= 4: n is 3",
        ),
    ],
)
def test_a_round_waits_with_a_reason_until_enough_peers_are_there(
    make_world: Any, peers: str, tables: dict[str, Any], reason: str
) -> None:
    world = make_world(peers=peers, **tables)
    assert (world.state.rounds, world.state.reason, world.kinds()[-1]) == ({}, reason, "run.waiting")
    assert world.tick(5).transitions == ()  # the same sentence is not told twice
    for peer_id in "uvwxyz":
        world.join(peer_id)
    assert world.state.rounds[1].status is RoundStatus.OPEN


def test_peers_that_are_not_active_or_not_connected_do_not_count(make_world: Any) -> None:
    world = make_world(peers="a", round={"peers_min": 2})
    world.peers["b"] = type(world.peers["a"])(peer_id="b", status="SUSPECT", connected=True)
    world.peers["c"] = type(world.peers["a"])(peer_id="c", status="ACTIVE", connected=False)
    world.tick()
    assert world.state.rounds == {}
    world.join("b")
    assert world.state.rounds[1].cohort == ("a", "b")


def test_a_round_closes_when_all_have_delivered_and_the_next_opens_on_its_version(make_world: Any) -> None:
    world = make_world(peers="ab")
    world.deliver("b")
    assert world.kinds() == ["assignment.delivered"]
    world.deliver("a", metrics={"loss": 0.5, "odd": float("nan")})
    assert world.kinds() == ["run.warned", "assignment.delivered", "round.aggregating"]
    assert world.reasons("run.warned") == ["a reports of its training: odd NaN"]
    assert world.aggregates() == [("a", "b")]
    assert world.decision.reason == (
        "round 1 closes with all the updates it wants: 2 of 2 updates are delivered, 2 are a quorum"
    )
    world.aggregated()
    assert world.kinds() == [
        "model.created",
        "round.committed",
        "round.planned",
        "round.opened",
        "assignment.offered",
        "assignment.offered",
    ]
    assert world.reasons("round.committed") == ["round 1 made version 1 from 2 updates in 0.25 s"]
    assert world.state.model.version == world.state.rounds[2].base_version == 1
    assert (world.row("run")["committed"], world.row("run")["last_round"]) == (1, 2)
    assert world.row("round", number=1)["model_version"] == 1
    assert world.row("optimizer_state")["digest"] == "state-1"
    told = world.row("assignment", assignment_id="run.1.a.1")
    assert (told["weight"], told["selected"], told["treatment"]) == (0.5, True, "taken as it is")
    assert told["metrics_json"] == '{"loss": 0.5, "odd": "NaN"}'


@pytest.mark.parametrize(
    ("share", "cohort", "rule_needs", "quorum"),
    [
        (0.5, "abcde", 1, 3),
        (0.8, "abcde", 1, 4),
        (0.7, "abcdefghij", 1, 7),
        (0.01, "abc", 1, 1),
        (0.4, "abcde", 4, 4),
    ],
)
def test_the_quorum_is_rounded_up_and_never_below_what_the_rule_can_take(
    make_world: Any, share: float, cohort: str, rule_needs: int, quorum: int
) -> None:
    world = make_world(peers=cohort, rule_needs=rule_needs, round={"quorum": share})
    assert world.state.rounds[1].quorum == quorum


def test_without_grace_the_quorum_closes_the_round_and_the_rest_is_cancelled(make_world: Any) -> None:
    world = make_world(peers="abcd", round={"quorum": 0.5})
    world.deliver("da")
    assert world.kinds() == ["assignment.delivered", *["assignment.expired"] * 2, "round.aggregating"]
    assert world.aggregates() == [("a", "d")]
    assert [c.assignment_id for c in world.ordered(Cancel)] == ["run.1.b.1", "run.1.c.1"]
    assert "closes with its quorum" in world.decision.reason


def test_the_grace_time_lets_others_deliver_and_then_closes(make_world: Any) -> None:
    world = make_world(peers="abcd", round={"quorum": 0.5, "grace_seconds": 10})
    world.deliver("ab")
    assert world.kinds() == ["assignment.delivered", "round.quorum"]
    assert world.wakes() == [world.now + 10]
    world.now += 9
    world.deliver("c")
    assert world.state.rounds[1].status is RoundStatus.OPEN
    assert world.tick(1).reason.startswith("round 1 closes after its grace time: 3 of 4")
    assert world.aggregates() == [("a", "b", "c")]


def test_grace_never_outlasts_the_deadline(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 0.5, "grace_seconds": 100, "deadline_seconds": 30})
    world.now += 20
    world.deliver("ab")
    assert world.state.rounds[1].grace_until == world.now + 10
    assert "closes at its deadline" in world.tick(10).reason


def test_all_deliveries_end_the_grace_time_early(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 0.5, "grace_seconds": 100})
    world.deliver("abc")
    assert world.aggregates() == [("a", "b", "c")]


def test_the_deadline_below_the_quorum_skips_and_the_model_stays(make_world: Any) -> None:
    world = make_world(peers="abc", round={"quorum": 0.6, "deadline_seconds": 30})
    world.deliver("a")
    assert world.tick(29.9).transitions == ()
    world.tick(0.1)
    assert world.reasons("round.skipped") == [
        "round 1 is below its quorum at its deadline: 1 of 3 updates are delivered, 2 are a quorum"
    ]
    assert [c.peer_id for c in world.ordered(Cancel)] == ["b", "c"]
    assert world.state.model.version == 0
    assert (world.state.skipped, world.state.skipped_in_row, world.state.rounds[2].base_version) == (1, 1, 0)
    assert world.state.rounds[2].deadline_at == world.now + 30


def test_over_selection_takes_the_first_that_deliver(make_world: Any) -> None:
    world = make_world(peers="abcdefgh", sampling={"count": 3, "over_select": 1.5})
    round_ = world.state.rounds[1]
    assert (len(round_.cohort), round_.needed) == (5, 3)
    first = "".join(reversed(round_.cohort[:3]))
    world.deliver(first)
    assert world.aggregates() == [tuple(sorted(first))]
    assert [c.peer_id for c in world.ordered(Cancel)] == list(round_.cohort[3:])
    assert world.kinds() == ["assignment.delivered", *["assignment.expired"] * 2, "round.aggregating"]


def test_the_rule_may_refuse_and_the_round_is_skipped(make_world: Any) -> None:
    world = make_world(peers="ab")
    world.deliver("ab")
    world.send(
        AggregationSkipped(run_id="run", round=1, reason_given="krum needs n > 2f + 2: n is 2, f is 1")
    )
    assert world.reasons("round.skipped") == [
        "round 1 was not aggregated: krum needs n > 2f + 2: n is 2, f is 1"
    ]
    assert world.state.reason == "round 2 waits for a moment after a skipped round"
    world.tick(1)
    assert world.state.rounds[2].status is RoundStatus.OPEN


def test_too_many_skips_in_a_row_pause_the_run(make_world: Any) -> None:
    world = make_world(peers="ab", round={"skips_max": 2, "deadline_seconds": 10})
    world.tick(10)
    world.play_round("ab")  # a committed round starts the count again
    assert world.state.skipped_in_row == 0
    world.tick(10)
    assert world.state.status is RunStatus.RUNNING
    world.tick(10)
    assert world.state.status is RunStatus.PAUSED
    assert world.kinds()[-2:] == ["round.skipped", "run.paused"]
    assert world.state.reason == (
        "round 4 is below its quorum at its deadline: 0 of 2 updates are delivered, 2 are a quorum; mend that, then: "
        "muster run resume run; the run is paused, since 2 rounds in a row were skipped (round.skips_max)"
    )
    assert (world.row("run")["skipped"], world.row("run").get("ended_at")) == (3, None)
    world.tick(1000)
    assert world.state.rounds == {}
    world.send(ResumeRequested(run_id="run"))
    assert (world.state.status, world.state.skipped_in_row) == (RunStatus.RUNNING, 0)
    world.play_round("ab")
    world.play_round("ab")
    assert world.state.status is RunStatus.FINISHED


def test_a_poisson_draw_of_nobody_is_a_skipped_round(make_world: Any) -> None:
    world = make_world(
        peers="ab", sampling={"policy": "poisson", "fraction": 0.3}, round={"skips_max": 50}, seed=4
    )
    assert "round 1 has too small a cohort: the sampler drew nobody" in world.reasons("round.skipped")
    (round_,) = world.state.rounds.values()
    assert round_.number == world.state.skipped + 1
    assert round_.cohort


def test_the_same_seed_draws_the_same_cohorts(make_world: Any) -> None:
    def cohorts(seed: int) -> list[tuple[str, ...]]:
        world = make_world(peers="abcdefgh", rounds=6, sampling={"count": 3}, seed=seed)
        found = []
        while world.state.rounds:
            (round_,) = world.state.rounds.values()
            found.append(round_.cohort)
            world.play_round("".join(round_.cohort))
        return found

    assert cohorts(1) == cohorts(1)
    assert len(set(cohorts(1))) > 1
    assert cohorts(1) != cohorts(2)


def test_results_that_are_not_wanted_change_nothing(make_world: Any) -> None:
    world = make_world(peers="ab")
    assert world.send(world.result(1)).reason == (
        "round 1 is not aggregating: its result is not wanted (any more)"
    )
    world.deliver("ab")
    result = world.result(1)
    world.send(result)
    assert world.send(result).transitions == ()  # nothing is aggregated twice
    assert world.state.committed == 1
    world.deliver("ab")
    stale = world.result(2)
    other = type(stale)(run_id="run", round=2, model=result.model, treatments=(), seconds=1.0)
    assert (
        world.send(other).reason
        == "the result of round 2 is version 1 of round 1; version 2 of round 2 comes next"
    )
    refusal = AggregationSkipped(run_id="run", round=7, reason_given="no")
    assert world.send(refusal).reason == "round 7 is not aggregating: there is nothing to skip"
