"""Schedules whose work outlives its round, and that say themselves how updates are folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.engine import assignments, schedule
from coordinator.engine.explain import explain
from coordinator.engine.sorted_map import SortedMap
from coordinator.engine.state import (
    Aggregate,
    AggregationSkipped,
    AssignmentFailed,
    AssignmentProgressed,
    AssignmentStatus,
    PeerView,
    RoundStatus,
    RunState,
    UpdateAdmitted,
)
from exchange.facts import UpdateFacts
from muster.work import TRAIN, Work

FACTS = UpdateFacts(digest="u", size_bytes=10, dense_bytes=40, examples=5, norm=1.0)


@dataclass(frozen=True)
class Buffer:
    """Closes a round with two updates, whoever's and of whichever round; all others work on."""

    size: int = 2

    def next(self, state: RunState, now: float, peers: Mapping[str, PeerView]) -> Sequence[schedule.Action]:
        if any(round_.status is RoundStatus.AGGREGATING for round_ in state.rounds.values()):
            return [schedule.Wait(until=None, reason="it is being aggregated")]
        if state.committed >= state.spec.rounds:
            return [schedule.Finish(reason="enough")]
        busy = {state.carried[name].peer_id for name in state.carried.live}
        for round_ in state.rounds.values():
            works = round_.assignments
            busy |= {works[name].peer_id for name in works.live}
            there = {peer.peer_id for peer in peers.values() if peer.connected} - busy
            there -= {each.peer_id for each in works.delivered}
            free = sorted(there)
            if free:
                work = Work(role=TRAIN, base=round_.base_version, params={"round": round_.number})
                return [schedule.OfferWork(round=round_.number, peer_ids=(*free,), work=work, reason="free")]
            ready = [*state.carried.delivered, *works.delivered]
            if len(ready) >= self.size:
                weights = {each.assignment_id: 0.75 - 0.5 * i for i, each in enumerate(ready[: self.size])}
                return [
                    schedule.CloseRound(
                        round=round_.number, reason="the buffer is full", weights=weights, work_goes_on=True
                    )
                ]
            return [schedule.Wait(until=None, reason="the buffer fills")]
        assert state.model is not None
        return [
            schedule.OpenRound(
                cohort=tuple(sorted(peers)),
                needed=self.size,
                quorum=self.size,
                base_version=state.model.version,
                deadline_at=now + 60,
                reason="the next buffer",
            )
        ]


def _world(make_world: Any, **spec: Any) -> Any:
    world = make_world(peers="abc", started=False, **{"rounds": 4, **spec})
    world.schedule = Buffer()
    world.start()
    return world


def _deliver(world: Any, name: str) -> Any:
    return world.send(UpdateAdmitted(run_id="run", assignment_id=name, update=FACTS))


def test_work_outlives_its_round_and_counts_in_a_later_one(make_world: Any) -> None:
    world = _world(make_world)
    _deliver(world, "run.1.a.1")
    _deliver(world, "run.1.b.1")
    (order,) = world.ordered(Aggregate)
    assert [u.assignment_id for u in order.updates] == ["run.1.a.1", "run.1.b.1"]
    assert order.weights == (0.75, 0.25)
    world.aggregated()
    assert list(world.state.carried) == ["run.1.c.1"]
    assert sorted(world.state.models) == [0, 1]  # what c's work starts from is kept

    _deliver(world, "run.2.a.1")
    _deliver(world, "run.1.c.1")
    (order,) = world.ordered(Aggregate)
    assert [(u.assignment_id, u.work.base) for u in order.updates] == [("run.2.a.1", 1), ("run.1.c.1", 0)]
    world.aggregated()
    assert world.state.counted == {("a", TRAIN): 2, ("b", TRAIN): 1, ("c", TRAIN): 1}
    assert list(world.state.carried) == ["run.2.b.1", "run.2.c.1"]
    assert sorted(world.state.models) == [1, 2]


def test_an_update_that_comes_while_the_round_is_aggregated_waits_for_the_next(make_world: Any) -> None:
    world = _world(make_world)
    _deliver(world, "run.1.a.1")
    _deliver(world, "run.1.b.1")
    _deliver(world, "run.1.c.1")
    told = explain(world.state, world.peers, world.now, lambda _name: 0)
    assert told.sentence == "round 1 is aggregating 2 updates"
    assert assignments.settled_round(world.state, "c", TRAIN) == 1  # may yet count, so c goes on from there
    world.restart()
    (order,) = world.ordered(Aggregate)
    assert [u.assignment_id for u in order.updates] == ["run.1.a.1", "run.1.b.1"]
    world.aggregated()
    assert [a.assignment_id for a in world.state.carried.delivered] == ["run.1.c.1"]
    world.restart()
    assert [a.assignment_id for a in world.state.carried.delivered] == ["run.1.c.1"]


def test_what_is_carried_has_a_deadline_of_its_own_and_goes_on_after_a_restart(make_world: Any) -> None:
    world = _world(make_world)
    world.tick(10.0)
    _deliver(world, "run.1.a.1")
    _deliver(world, "run.1.b.1")
    world.aggregated()
    assert world.state.carried["run.1.c.1"].deadline_at == 1060.0
    world.now += 1000
    for peer_id in "abc":
        world.join(peer_id, tick=False)
    world.restart()
    seconds = world.state.spec.round.deadline_seconds
    assert world.state.carried["run.1.c.1"].deadline_at == world.now + seconds
    event = AssignmentProgressed(run_id="run", assignment_id="run.1.c.1", status=AssignmentStatus.PREPARING)
    world.send(event)
    prepare = world.state.spec.round.prepare_seconds
    assert world.state.carried["run.1.c.1"].deadline_at == world.now + prepare
    world.tick(prepare + 1)
    assert "run.1.c.1" not in world.state.carried
    assert "assignment.expired" in world.kinds()


def test_a_lost_peer_and_the_runs_end_let_go_of_what_is_carried(make_world: Any) -> None:
    world = _world(make_world)
    _deliver(world, "run.1.a.1")
    _deliver(world, "run.1.b.1")
    world.aggregated()
    world.leave("c")
    assert not world.state.carried
    for number in (2, 3, 4):
        _deliver(world, f"run.{number}.a.1")
        _deliver(world, f"run.{number}.b.1")
        world.aggregated()
    assert world.state.status == "FINISHED"


def test_a_fold_that_is_refused_drops_its_updates_and_no_others(make_world: Any) -> None:
    world = _world(make_world)
    _deliver(world, "run.1.a.1")
    _deliver(world, "run.1.b.1")
    _deliver(world, "run.1.c.1")
    world.send(AggregationSkipped(run_id="run", round=1, reason_given="not finite"))
    assert [a.assignment_id for a in world.state.carried.delivered] == ["run.1.c.1"]
    assert world.state.counted == {}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200)), max_size=250))
@settings(deadline=None)
def test_a_sorted_map_is_a_map_and_never_changes(changes: list[tuple[bool, int]]) -> None:
    model: dict[int, int] = {}
    held: SortedMap[int, int] = SortedMap()
    for number, (puts, key) in enumerate(changes):
        before, was = held, dict(model)
        held = held.set(key, number) if puts else held.without(key)
        model = {**model, key: number} if puts else {k: v for k, v in model.items() if k != key}
        assert before == was
    assert list(held.items()) == sorted(model.items())
    assert len(held) == len(model)
    assert all(key in held and held[key] == value for key, value in model.items())
    if model:
        assert (held.first(), held.last()) == (min(model), max(model))
    assert SortedMap(model.items()) == model


STEPS = [
    "deliver",
    "deliver",
    "deliver",
    "aggregated",
    "aggregated",
    "fail",
    "skip",
    "leave",
    "join",
    "late",
    "crash",
]


@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), max_size=40))
@settings(deadline=None, max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_happens_rows_and_state_agree_and_the_log_is_sound(
    make_world: Any, steps: list[tuple[str, int]]
) -> None:
    """`make_world` checks both after every event."""
    world = _world(make_world, rounds=6)
    for step, number in steps:
        if world.state.status.ended:
            break
        _happen(world, step, number)
    for _ in range(60):  # once all are there, work and stay, the run comes to its end
        if world.state.status.ended:
            break
        for peer_id in "abc":
            world.join(peer_id)
        _happen(world, "deliver", 0)
        _happen(world, "aggregated", 0)
        world.tick(1.0)
    assert world.state.status == "FINISHED", world.state.reason


def _happen(world: Any, step: str, number: int) -> None:
    state = world.state
    live = sorted(
        [*state.carried.live, *(name for r in state.rounds.values() for name in r.assignments.live)]
    )
    closed = [r.number for r in state.rounds.values() if r.status is RoundStatus.AGGREGATING]
    one = live[number % len(live)] if live else None
    peer_id = "abc"[number % 3]
    match step:
        case "deliver" if one is not None:
            _deliver(world, one)
        case "fail" if one is not None:
            world.send(
                AssignmentFailed(
                    run_id="run", assignment_id=one, error_id="x", message="m", traceback="", retry=True
                )
            )
        case "aggregated" if closed:
            world.send(world.result(closed[0]))
        case "skip" if closed:
            world.send(AggregationSkipped(run_id="run", round=closed[0], reason_given="not finite"))
        case "leave":
            world.leave(peer_id)
        case "join":
            world.join(peer_id)
        case "late":
            world.tick(30.0)
        case "crash":
            world.restart()
        case _:
            pass
