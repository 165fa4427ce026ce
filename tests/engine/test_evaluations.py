from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator.engine.state import AssignmentFailed, EvaluateOwn, Offer, OwnEvaluated, RunStatus

BOTH = {"every": 1, "on": ["coordinator", "peers"]}


def _own(version: int, **metrics: float) -> OwnEvaluated:
    return OwnEvaluated(run_id="run", version=version, metrics=metrics)


@pytest.mark.parametrize(
    ("every", "rounds", "versions"), [(0, 3, []), (1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (9, 3, [3])]
)
def test_the_due_versions_are_evaluated_and_the_last_one_always(
    make_world: Any, every: int, rounds: int, versions: list[int]
) -> None:
    world = make_world(peers="ab", rounds=rounds, evaluate={"every": every})
    seen: list[int] = []
    for _ in range(rounds):
        world.play_round("ab")
        seen += [order.model.version for order in world.ordered(EvaluateOwn)]
    assert seen == versions


def test_an_evaluation_never_blocks_the_next_round(make_world: Any) -> None:
    world = make_world(peers="ab", evaluate=BOTH)
    world.play_round("ab")
    assert world.kinds() == [
        "model.created",
        "round.committed",
        "evaluation.started",
        "assignment.offered",
        "assignment.offered",
        "round.planned",
        "round.opened",
        "assignment.offered",
        "assignment.offered",
    ]
    assert world.offered() == ["run.e1.a.1", "run.e1.b.1", "run.2.a.1", "run.2.b.1"]
    assert world.ordered(Offer)[0].assignment.work.role == "evaluate"
    assert world.reasons("evaluation.started") == ["version 1 is evaluated on the coordinator and 2 peers"]
    world.play_round("ab")
    assert sorted(world.state.evaluations) == [1, 2]
    assert sorted(world.state.models) == [1, 2]


def test_metrics_are_the_coordinators_own_and_the_weighted_mean_of_the_peers(make_world: Any) -> None:
    world = make_world(peers="abc", evaluate=BOTH, aggregation={"examples_max": 300})
    world.play_round("abc")
    world.evaluated("a", 1, {"accuracy": 1.0, "loss": 0.25}, 100)
    world.evaluated("b", 1, {"accuracy": 0.5, "loss": float("inf")}, 10**9)  # counts as 300
    world.send(_own(1, accuracy=0.9))
    assert "evaluation.finished" not in world.kinds()
    world.evaluated("c", 1, {}, 5)
    assert world.kinds() == ["assignment.delivered", "evaluation.finished"]
    row = world.row("evaluation")
    assert json.loads(row["metrics_json"]) == {
        "accuracy": 0.9,
        "peers/accuracy": pytest.approx(0.625),
        "peers/loss": 0.25,
    }
    assert row["state"] == "FINISHED"
    assert world.reasons("evaluation.finished") == [
        "the evaluation of version 1 is complete: accuracy 0.9, peers/accuracy 0.625, peers/loss 0.25"
    ]


def test_peers_without_example_counts_weigh_the_same(make_world: Any) -> None:
    world = make_world(peers="ab", evaluate={"every": 1, "on": ["peers"]})
    world.play_round("ab")
    world.evaluated("a", 1, {"loss": 1.0}, 0)
    world.evaluated("b", 1, {"loss": 2.0}, -5)
    assert json.loads(world.row("evaluation")["metrics_json"]) == {"peers/loss": 1.5}


def test_the_run_finishes_when_the_last_evaluation_has_ended(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=1, evaluate=BOTH)
    world.play_round("ab")
    assert world.state.status is RunStatus.RUNNING
    assert world.state.reason == "every round is committed; the evaluation of version 1 is under way"
    world.send(_own(1, loss=0.5))
    world.evaluated("a", 1, {"loss": 1.0}, 1)
    world.evaluated("b", 1, {"loss": 1.0}, 1)
    assert world.kinds() == ["assignment.delivered", "evaluation.finished", "run.finished"]


def test_the_deadline_ends_an_evaluation_with_what_it_has(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=1, evaluate=BOTH, round={"deadline_seconds": 30})
    world.play_round("ab")
    assert world.now + 30 in world.wakes()
    world.evaluated("a", 1, {"loss": 1.0}, 1)
    world.tick(30)
    assert world.kinds() == ["run.warned", "assignment.expired", "evaluation.finished", "run.finished"]
    assert world.reasons("run.warned") == [
        "the evaluation of version 1 was not done at its deadline by the coordinator, b"
    ]
    assert json.loads(world.row("evaluation")["metrics_json"]) == {"peers/loss": 1.0}
    assert world.row("evaluation")["own_pending"] is False


def test_an_evaluation_goes_on_without_peers_that_fail_or_are_lost(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=1, evaluate={"every": 1, "on": ["peers"]})
    world.play_round("ab")
    failed = AssignmentFailed(
        run_id="run",
        assignment_id="run.e1.a.1",
        error_id="worker.failed",
        message="no data",
        traceback="",
        retry=True,
    )
    world.send(failed)
    assert world.offered() == []  # an evaluation is not tried again
    world.leave("b")
    assert world.kinds() == ["assignment.lost", "evaluation.finished", "run.finished"]
    assert world.reasons("evaluation.finished") == ["the evaluation of version 1 is complete: no metrics"]


def test_an_error_of_the_coordinators_evaluation_is_told(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=1, evaluate={"every": 1})
    world.play_round("ab")
    world.send(OwnEvaluated(run_id="run", version=1, metrics={}, error="the data is missing"))
    assert world.reasons("evaluation.own") == [
        "the coordinator could not evaluate version 1: the data is missing"
    ]
    assert world.state.status is RunStatus.FINISHED


def test_with_nobody_to_ask_an_evaluation_ends_at_once(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=1, evaluate={"every": 1, "on": ["peers"]})
    world.deliver("ab")
    world.peers.clear()
    world.aggregated()
    assert world.kinds()[-3:] == ["evaluation.started", "evaluation.finished", "run.finished"]
    assert world.reasons("evaluation.started") == ["version 1 is evaluated on nobody: no peer is connected"]


def test_each_answer_counts_once(make_world: Any) -> None:
    world = make_world(peers="ab", evaluate=BOTH)
    world.play_round("ab")
    world.send(_own(1, loss=1.0))
    assert world.send(_own(1, loss=9.0)).reason == "no evaluation of version 1 waits for the coordinator"
    world.evaluated("a", 1, {"loss": 1.0}, 1)
    assert world.evaluated("a", 1, {"loss": 9.0}, 1).reason == "run.e1.a.1 has ended: it is DELIVERED"
