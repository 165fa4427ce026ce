"""The engine under everything at once: late, repeated, forged and unknown events, peers that come and go, and crashes
after which the state is what the rows say. `World` compares state, rows and log after every step."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coordinator.engine.decision_builder import deadlines
from coordinator.engine.standings import REST_SECONDS_MAX, is_aside
from coordinator.engine.state import (
    Aggregate,
    AggregationSkipped,
    AssignmentEvaluated,
    AssignmentFailed,
    AssignmentProgressed,
    AssignmentStatus,
    EvaluateOwn,
    ModelFailed,
    Offer,
    OwnEvaluated,
    PauseRequested,
    PeerGone,
    PeerStatus,
    PeerView,
    PrepareModel,
    Restored,
    ResumeRequested,
    RoundStatus,
    RunStatus,
    StopRequested,
    Tick,
    UpdateAdmitted,
    UpdateRefused,
    WakeAt,
)
from exchange.facts import UpdateFacts

PEERS = "abcde"
FACTS = UpdateFacts(digest="u", size_bytes=1, dense_bytes=1, examples=3, norm=1.0, metrics={"loss": 1.0})

SPECS = st.fixed_dictionaries(
    {
        "rounds": st.integers(1, 9),
        "seed": st.integers(0, 5),
        "round": st.fixed_dictionaries(
            {
                "quorum": st.sampled_from([0.3, 0.6, 1.0]),
                "grace_seconds": st.sampled_from([0, 5, 100]),
                "peers_min": st.integers(1, 4),
                "attempts_max": st.integers(1, 3),
                "skips_max": st.integers(1, 6),
            }
        ),
        "sampling": st.sampled_from(
            [
                {},
                {"fraction": 0.6},
                {"count": 2, "over_select": 2.0},
                {"policy": "poisson", "fraction": 0.7},
                {"policy": "poisson", "fraction": 0.5, "over_select": 1.5},
            ]
        ),
        "aggregation": st.sampled_from([{"rule": "mean"}, {"rule": "fltrust", "trusted_peer": "b"}]),
        "evaluate": st.fixed_dictionaries(
            {"every": st.integers(0, 2), "on": st.sampled_from([["coordinator"], ["coordinator", "peers"]])}
        ),
    }
)


def test_every_run_keeps_its_books_and_ends_or_waits_with_a_reason(make_world: Any) -> None:
    machine = settings(
        max_examples=100,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    run_state_machine_as_test(lambda: Machine(make_world), settings=machine)


class Machine(RuleBasedStateMachine):
    def __init__(self, make_world: Any) -> None:
        super().__init__()
        self._make_world = make_world
        self._world: Any = None
        self._trusted: str | None = None
        self._ids: list[str] = []  # every assignment that was ever offered
        self._results: list[Any] = []
        self._rounds_when_paused = 0
        self._resumed_at = 0  # the events before the newest request that was followed
        self._instances = dict.fromkeys(PEERS, "1")
        self._ordered: set[Any] = set()  # since the last crash; what a shell would be at

    @initialize(spec=SPECS, rule_needs=st.integers(1, 2), ready=st.sampled_from([True, True, True, False]))
    def submit(self, spec: dict[str, Any], rule_needs: int, ready: bool) -> None:
        self._trusted = spec["aggregation"].get("trusted_peer")
        self._world = self._make_world(peers="abc", rule_needs=rule_needs, started=False, **spec)
        self._note()
        if ready:
            self.model_ready()

    def _send(self, event: Any) -> None:
        before = len(self._world.rows.log)
        decision = self._world.send(event)
        if isinstance(event, ResumeRequested) and decision.transitions:
            self._resumed_at = before
        if "run.paused" in self._world.kinds():
            self._rounds_when_paused = decision.state.last_round
        self._note()

    def _put_peer(self, peer_id: str, status: PeerStatus, connected: bool) -> None:
        self._world.peers[peer_id] = PeerView(
            peer_id=peer_id, status=status, connected=connected, instance=self._instances[peer_id]
        )

    def _note(self) -> None:
        for effect in self._world.effects:
            match effect:
                case Offer():
                    self._ids.append(effect.assignment.assignment_id)
                    self._ordered.add(effect.assignment.assignment_id)
                case Aggregate():
                    self._ordered.add(("aggregate", effect.round))
                    whose = [a.peer_id for a in effect.updates]
                    assert whose == sorted(whose)
                    assert self._trusted is None or self._trusted in whose
                case EvaluateOwn():
                    self._ordered.add(("evaluate", effect.model.version))
                case PrepareModel():
                    self._ordered.add("prepare")
                case WakeAt():
                    self._ordered.add(effect.at)

    # -- what happens ------------------------------------------------------------------------------------

    @rule()
    def model_ready(self) -> None:
        self._world.start()
        self._note()

    @rule(data=st.data(), status=st.sampled_from(list(AssignmentStatus)))
    def progress(self, data: st.DataObject, status: AssignmentStatus) -> None:
        self._send(AssignmentProgressed(run_id="run", assignment_id=self._pick(data), status=status))

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        self._send(UpdateAdmitted(run_id="run", assignment_id=self._pick(data), update=FACTS))

    @rule(count=st.integers(1, 5))
    def deliver_what_is_live(self, count: int) -> None:
        for assignment_id in self._live()[:count]:
            self._send(UpdateAdmitted(run_id="run", assignment_id=assignment_id, update=FACTS))

    @rule(days=st.lists(st.sampled_from(["play", "play", "late", "crash", "leave"]), min_size=1, max_size=5))
    def days_pass(self, days: list[str]) -> None:
        """What happens mostly, so that the odd events meet runs of every age."""
        for day in days:
            match day:
                case "play":
                    self._play_the_round()
                case "late":
                    self.time_passes(60.0)
                case "crash":
                    self.crash(10.0)
                    self._all_connect()
                case "leave":
                    self.peer_gone("b", PeerStatus.LOST)
                    self._all_connect()

    def _play_the_round(self) -> None:
        for assignment_id in self._live():
            self._send(UpdateAdmitted(run_id="run", assignment_id=assignment_id, update=FACTS))
        self.aggregated()

    def _all_connect(self) -> None:
        for peer_id in PEERS:
            self._put_peer(peer_id, PeerStatus.ACTIVE, connected=True)
        self._send(Tick(run_id="run"))

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        self._send(
            UpdateRefused(run_id="run", assignment_id=self._pick(data), error_id="update.x", message="bad")
        )

    @rule(
        data=st.data(),
        retry=st.booleans(),
        error_id=st.sampled_from(["worker.x", "worker.failed", "task.no_data", "peer.task_not_allowed"]),
    )
    def fail(self, data: st.DataObject, retry: bool, error_id: str) -> None:
        self._send(
            AssignmentFailed(
                run_id="run",
                assignment_id=self._pick(data),
                error_id=error_id,
                message=f"bad: {error_id}",
                traceback="...",
                retry=retry,
            )
        )

    @rule(data=st.data())
    def evaluated(self, data: st.DataObject) -> None:
        self._send(
            AssignmentEvaluated(
                run_id="run", assignment_id=self._pick(data), metrics={"loss": 0.5}, examples=4
            )
        )

    @rule(version=st.integers(0, 4))
    def own_evaluated(self, version: int) -> None:
        self._send(OwnEvaluated(run_id="run", version=version, metrics={"loss": 0.25}))

    @rule()
    def aggregated(self) -> None:
        for number, round_ in self._world.state.rounds.items():
            if round_.status is RoundStatus.AGGREGATING:
                self._results.append(self._world.result(number))
                self._send(self._results[-1])
                return

    @precondition(lambda self: self._results)
    @rule(data=st.data())
    def aggregated_again(self, data: st.DataObject) -> None:
        before = self._world.state
        self._send(data.draw(st.sampled_from(self._results)))
        assert self._world.state is before

    @rule()
    def result_of_a_round_that_does_not_aggregate(self) -> None:
        state = self._world.state
        for number, round_ in state.rounds.items():
            if round_.status is RoundStatus.OPEN:
                self._send(self._world.result(number))
                assert self._world.state is state

    @rule(number=st.integers(0, 6))
    def aggregation_skipped(self, number: int) -> None:
        self._send(AggregationSkipped(run_id="run", round=number, reason_given="the bound does not hold"))

    @rule(peer_id=st.sampled_from(PEERS), status=st.sampled_from(list(PeerStatus)))
    def peer_gone(self, peer_id: str, status: PeerStatus) -> None:
        self._put_peer(peer_id, status, connected=False)
        self._send(PeerGone(run_id="run", peer_id=peer_id, reason=f"it is {status}"))

    @rule(peer_id=st.sampled_from(PEERS), connected=st.booleans())
    def peer_there(self, peer_id: str, connected: bool) -> None:
        self._put_peer(peer_id, PeerStatus.ACTIVE, connected=connected)
        self._send(Tick(run_id="run"))

    @rule(peer_id=st.sampled_from(PEERS))
    def peer_starts_anew(self, peer_id: str) -> None:
        self._instances[peer_id] += "1"
        self._put_peer(peer_id, PeerStatus.ACTIVE, connected=True)
        self._send(Tick(run_id="run"))
        assert self._world.state.status.ended or not is_aside(self._world.state, peer_id)

    @rule(
        peer_ids=st.sets(st.sampled_from(PEERS), max_size=3),
        error_id=st.sampled_from(["worker.failed", "task.no_data"]),
    )
    def some_are_broken(self, peer_ids: set[str], error_id: str) -> None:
        """For a round: they fail as they do each time, and the others deliver."""
        for assignment_id in self._live():
            if assignment_id.split(".")[2] in peer_ids:
                self._send(
                    AssignmentFailed(
                        run_id="run",
                        assignment_id=assignment_id,
                        error_id=error_id,
                        message="no such file",
                        traceback="...",
                        retry=False,
                    )
                )
        self._play_the_round()

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 30.0, 60.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self._world.now += seconds
        self._send(Tick(run_id="run"))

    @rule(play=st.booleans())
    def pause(self, play: bool) -> None:
        self._send(PauseRequested(run_id="run"))
        if play:
            self._play_the_round()

    @rule()
    def resume(self) -> None:
        self._send(ResumeRequested(run_id="run"))

    @rule(chance=st.integers(0, 15))
    def stop(self, chance: int) -> None:
        if chance == 0:
            self._send(StopRequested(run_id="run", reason="enough"))
        elif chance == 1:
            self._send(ModelFailed(run_id="run", error="no such module"))

    @rule(seconds=st.sampled_from([0.0, 10.0, 5000.0]))
    def crash(self, seconds: float) -> None:
        self._world.now += seconds
        self._ordered.clear()
        if self._world.state.status.ended:
            return
        self._world.restart()
        self._note()

    # -- what must hold ----------------------------------------------------------------------------------

    @invariant()
    def what_is_under_way_was_ordered_since_the_last_start(self) -> None:
        state = self._world.state
        if state.status.ended:
            assert not state.rounds
            assert not state.evaluations
            return
        assert state.model is not None or "prepare" in self._ordered
        assert deadlines(state) <= self._ordered or min(deadlines(state)) in self._ordered
        for assignment_id in self._live():
            assert assignment_id in self._ordered
        for number, round_ in state.rounds.items():
            if round_.status is RoundStatus.AGGREGATING:
                assert ("aggregate", number) in self._ordered
        for version, evaluation in state.evaluations.items():
            assert not evaluation.own_pending or ("evaluate", version) in self._ordered

    @invariant()
    def a_run_ends_or_waits_with_a_reason(self) -> None:
        state = self._world.state
        assert state.reason
        for round_ in state.rounds.values():
            assert round_.reason
            assert round_.status in (RoundStatus.OPEN, RoundStatus.AGGREGATING)
        if state.status is RunStatus.RUNNING and not state.rounds and not state.evaluations:
            assert "waits for" in state.reason

    @invariant()
    def a_paused_run_opens_no_round_and_attempts_are_bounded(self) -> None:
        state = self._world.state
        assert state.status is not RunStatus.PAUSED or state.last_round == self._rounds_when_paused
        for assignment_id in self._live():
            assert int(assignment_id.rpartition(".")[2]) <= state.spec.round.attempts_max

    @invariant()
    def a_pause_is_short_and_between_rounds(self) -> None:
        state = self._world.state
        if state.rest is not None:
            assert 0 < state.rest.until - self._world.now <= REST_SECONDS_MAX
            assert not state.rounds

    @invariant()
    def the_counts_are_those_of_the_log(self) -> None:
        state = self._world.state
        ends = [e.kind for e in self._world.rows.log if e.kind in ("round.committed", "round.skipped")]
        assert state.committed == ends.count("round.committed")
        assert state.skipped == ends.count("round.skipped")
        since = self._world.rows.log[self._resumed_at :]
        ends = [e.kind for e in since if e.kind in ("round.committed", "round.skipped")]
        in_row = next((n for n, kind in enumerate(reversed(ends)) if kind == "round.committed"), len(ends))
        assert state.skipped_in_row == in_row

    def teardown(self) -> None:
        """Once all peers are there, work and stay, every run comes to its end."""
        world = self._world
        if world is None:
            return
        self._all_connect()
        for event in (ResumeRequested(run_id="run"), Restored(run_id="run")):
            self._send(event)
        self.model_ready()
        for _ in range(100):
            if world.state.status.ended:
                break
            self._send(ResumeRequested(run_id="run"))  # too many skips pause it
            self._play_the_round()
            world.now += 60
            self._send(Tick(run_id="run"))
        assert world.state.status.ended, world.state.reason

    def _pick(self, data: st.DataObject) -> str:
        live = self._live()
        known = ["run.1.nobody.1", *self._ids]
        return data.draw(
            st.sampled_from(live) if live and data.draw(st.booleans()) else st.sampled_from(known)
        )

    def _live(self) -> list[str]:
        state = self._world.state
        return [
            assignment.assignment_id
            for holder in (*state.rounds.values(), *state.evaluations.values())
            for assignment in holder.assignments.values()
            if not assignment.status.ended
        ]
