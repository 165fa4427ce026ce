"""The checker must see each kind of broken log; a log is broken here by hand, one event at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coordinator.engine import invariants
from coordinator.engine.state import PauseRequested, ResumeRequested, StopRequested

Log = list[Any]


@pytest.fixture
def log(make_world: Any) -> Log:
    world = make_world(peers="abc", rounds=2, evaluate={"every": 2, "on": ["peers"]}, round={"quorum": 0.6})
    world.fail("c", retry=True)
    world.play_round("ab")
    world.send(PauseRequested(run_id="run"))
    world.tick()
    world.deliver("a")
    world.restart()
    world.deliver("b")
    world.send(ResumeRequested(run_id="run"))
    world.aggregated()
    world.tick(60)
    assert world.state.status == "FINISHED"
    return world.rows.log


def _find(log: Log, kind: str, nth: int = 0) -> int:
    return [n for n, event in enumerate(log) if event.kind == kind][nth]


def _without(kind: str, nth: int = 0) -> Callable[[Log], Log]:
    def change(log: Log) -> Log:
        at = _find(log, kind, nth)
        return log[:at] + log[at + 1 :]

    return change


def _twice(kind: str, nth: int = 0) -> Callable[[Log], Log]:
    """As if another writer had written it once more."""

    def change(log: Log) -> Log:
        at = _find(log, kind, nth)
        return [*log[: at + 1], log[at], *log[at + 1 :]]

    return change


def _told(kind: str, nth: int = 0, **data: Any) -> Callable[[Log], Log]:
    def change(log: Log) -> Log:
        at = _find(log, kind, nth)
        return [*log[:at], replace(log[at], data={**log[at].data, **data}), *log[at + 1 :]]

    return change


def _as(kind: str, nth: int = 0, /, **fields: Any) -> Callable[[Log], Log]:
    def change(log: Log) -> Log:
        at = _find(log, kind, nth)
        return [*log[:at], replace(log[at], **fields), *log[at + 1 :]]

    return change


def _again_at_the_end(kind: str) -> Callable[[Log], Log]:
    return lambda log: [*log, log[_find(log, kind)]]


def test_a_real_log_is_in_order(log: Log) -> None:
    assert invariants.check(log) == []


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        (_twice("round.committed"), "round 1 was COMMITTED"),
        (_twice("round.committed"), "version 1 was committed by round 1 before"),
        (_twice("model.created", 1), "version 1 follows version 1"),
        (_without("model.created", 1), "version 1 is not the one that was made last"),
        (_told("round.committed", digest="forged"), "version 1 is not the one that was made last"),
        (_told("model.created", 1, version=5), "version 5 follows version 0"),
        (
            _told("round.aggregating", updates=["run.1.a.1", "run.1.c.1"]),
            "run.1.c.1 is aggregated and was not admitted to round 1",
        ),
        (_told("round.aggregating", updates=["run.1.a.1"]), "run.1.b.1 was admitted to round 1 and is lost"),
        (
            _told("round.aggregating", updates=["run.1.a.1", "run.1.b.1", "run.1.b.1"]),
            "round 1 aggregates an update twice",
        ),
        (_told("round.committed", updates=["run.1.a.1"]), "round 1 commits other updates than it aggregated"),
        (_twice("assignment.delivered"), "run.1.a.1 was DELIVERED"),
        (_without("assignment.expired"), "run.1.c.2 outlives round 1"),
        (_without("assignment.lost"), "c holds work for round 1 already"),
        (_told("assignment.offered", 3, attempt=7), "attempt 7 of c comes after 1 attempts"),
        (_as("assignment.delivered", peer_id="b"), "run.1.a.1 was offered to a"),
        (_as("assignment.delivered", round=2), "run.1.a.1 belongs to round 2, which was never planned"),
        (_without("assignment.offered"), "run.1.a.1 was unknown"),
        (_without("round.opened"), "round 1 was PLANNED"),
        (_as("round.planned", 1, round=3), "round 3 follows round 1"),
        (_told("round.planned", 1, base_version=4), "version 4, its base, does not exist"),
        (_without("run.started"), "run run was QUEUED"),
        (_without("run.submitted"), "run run has not been submitted"),
        (_without("evaluation.finished"), "the evaluation of version 2 outlives its run"),
        (_told("run.finished", rounds=9), "run run finished with 2 of 9 rounds committed"),
        (_again_at_the_end("run.paused"), "run run has ended before: it is FINISHED"),
        (_as("run.paused", kind="run.hurried"), "run run was RUNNING"),
        (_as("run.paused", kind="lease.taken"), "its kind is unknown"),
    ],
)
def test_a_broken_log_is_seen(log: Log, change: Callable[[Log], Log], violation: str) -> None:
    found = invariants.check(_numbered(change(log)))
    assert any(violation in each for each in found), found


def test_events_out_of_order_are_seen(log: Log) -> None:
    log[4], log[5] = log[5], log[4]
    assert f"it comes after event {log[4].sequence}" in invariants.check(log)[0] + invariants.check(log)[-1]


def test_a_live_round_may_not_outlive_its_run(make_world: Any) -> None:
    world = make_world(peers="ab")
    world.send(StopRequested(run_id="run", reason="enough"))
    log = _numbered(_without("round.failed")(world.rows.log))
    assert any("round 1 outlives its run: it is OPEN" in each for each in invariants.check(log))


def test_runs_are_checked_each_by_itself(log: Log) -> None:
    other = [replace(event, run_id="other") for event in log]
    mixed = [event for pair in zip(log, other, strict=True) for event in pair]
    assert invariants.check(_numbered(mixed)) == []


def _numbered(log: Log) -> Log:
    return [replace(event, sequence=n) for n, event in enumerate(log)]
