"""What is read back equals what stood in memory, to the last field."""

import json
from dataclasses import MISSING, asdict, fields, replace
from typing import Any

from coordinator.engine.decide import decide, new_run
from coordinator.engine.history import PeerHistory
from coordinator.engine.sorted_map import SortedMap
from coordinator.engine.state import (
    Aggregate,
    Aggregated,
    AssignmentEvaluated,
    AssignmentFailed,
    AssignmentProgressed,
    AssignmentState,
    AssignmentStatus,
    EvaluationState,
    Event,
    Fold,
    ModelReady,
    ModelVersion,
    Offer,
    OwnEvaluated,
    PauseRequested,
    PeerStanding,
    PeerStatus,
    PeerView,
    Rest,
    Restored,
    ResumeRequested,
    RoundState,
    RoundStatus,
    RunState,
    RunStatus,
    RunSubmitted,
    StopRequested,
    Tick,
    Treatment,
    UpdateAdmitted,
    UpdateRefused,
    WarningState,
)
from coordinator.engine.works import Works
from coordinator.store import Store
from coordinator.submission.checks import build_schedule
from exchange.facts import UpdateFacts
from muster.spec.model import EvaluateTable, RoundTable, RunSpec
from muster.work import Work


def _assignment(**values: Any) -> AssignmentState:
    work = Work(role=values.pop("role", "train"), base=values.pop("base_version", 2))
    row = {"run_id": "r1", "round": 3, "attempt": 1, "work": work, "offered_at": 22.5}
    return AssignmentState(evaluation=work.role == "evaluate", **row | values)


def _full_state(spec: RunSpec) -> RunState:
    """Not one field in it that has a default is left at it."""
    facts = UpdateFacts(
        digest="d", size_bytes=5, dense_bytes=50, examples=7, norm=0.25, metrics={"loss": 1.5, "ünï": -1e-300},
        source_digest="5b",
    )  # fmt: skip
    lost = _assignment(
        assignment_id="r1.3.a.1", peer_id="a", status=AssignmentStatus.LOST, reason="gone", retry=True,
        preparing_at=23.5, prepared_at=24.5, training_at=25.5, uploading_at=26.5, deadline_at=27.5,
    )  # fmt: skip
    delivered = _assignment(
        assignment_id="r1.3.a.2", peer_id="a", attempt=2, status=AssignmentStatus.DELIVERED, reason="in time",
        update=facts,
    )  # fmt: skip
    training = _assignment(
        assignment_id="r1.3.b.1",
        peer_id="b",
        base_version=1,
        status=AssignmentStatus.TRAINING,
        reason="at work",
    )
    evaluated = _assignment(
        assignment_id="r1.e2.b.1", peer_id="b", round=2, role="evaluate", status=AssignmentStatus.DELIVERED,
        reason="evaluated", metrics={"accuracy": 0.5}, examples=11,
    )  # fmt: skip
    carried = _assignment(
        assignment_id="r1.2.b.1", peer_id="b", round=2, base_version=1, status=AssignmentStatus.TRAINING,
        reason="goes on", deadline_at=95.5,
    )  # fmt: skip
    models = {
        version: ModelVersion(
            version=version,
            round=version,
            digest=f"m{version}",
            size_bytes=2**33 + version,
            layout_digest="l",
        )
        for version in (1, 2)
    }
    round_ = RoundState(
        number=3, status=RoundStatus.OPEN, reason="it is on", base_version=2, cohort=("a", "b"), needed=2,
        quorum=1, planned_at=20.1, opened_at=20.2, deadline_at=80.2, grace_until=30.3,
        assignments=Works((), (lost, delivered, training)),
        roles={"b": "anchor"},
        fold=Fold(updates=("r1.3.a.2",), weights=(-0.5,), work_goes_on=True),
    )  # fmt: skip
    evaluation = EvaluationState(
        version=2, round=2, deadline_at=90.5, assignments=Works((), (evaluated,)), own_pending=True,
        own_metrics={"loss": 2.0},
    )  # fmt: skip
    return RunState(
        run_id="r1", spec=spec, status=RunStatus.PAUSED, reason="paused by hand", created_at=1234.5,
        source_digest="5a",
        model=models[2], rounds={3: round_}, evaluations={2: evaluation}, models=models, last_round=3,
        committed=2, skipped=1, skipped_in_row=1,
        counted={("a", "train"): 2, ("b", "train"): 1}, carried=Works((), (carried,)),
        rest=Rest(until=99.5, present=2),
        warnings={
            "slow:a": WarningState(
                cause="slow:a", reason="a is slow", peer_id="a", times=3, first_round=1, last_round=3, last_at=40.5
            )
        },
        standings={"b": PeerStanding(
            peer_id="b", error_id="task.no_data", cause="no examples", round=3, in_row=2, aside=True, instance="i",
            times=4,
        )},
    )  # fmt: skip


def _rows(state: RunState, script: Any) -> list[Any]:
    """The transitions that write this state, by hand."""
    rows = [
        script.peer("a"),
        script.peer("b"),
        script.run(
            state=state.status, reason=state.reason, created_at=state.created_at, last_round=state.last_round,
            committed=state.committed, skipped=state.skipped, skipped_in_row=state.skipped_in_row,
            rest_until=99.5, rest_present=2,
            model_version=2, spec_json=state.spec.canonical_json(), source_digest=state.source_digest,
        ),
    ]  # fmt: skip
    for model in state.models.values():
        rows.append(
            script.model(
                model.version, digest=model.digest, size_bytes=model.size_bytes,
                layout_digest=model.layout_digest,
            )
        )  # fmt: skip
    for round_ in state.rounds.values():
        named = ("base_version", "needed", "quorum", "planned_at", "opened_at", "deadline_at", "grace_until")
        values = {name: getattr(round_, name) for name in named}
        cohort = json.dumps(round_.cohort)
        rows.append(
            script.round(
                round_.number,
                round_.status,
                reason=round_.reason,
                cohort_json=cohort,
                roles_json=json.dumps(dict(round_.roles)),
                fold_json="" if round_.fold is None else round_.fold.to_json(),
                **values,
            )
        )
        rows += [_assignment_row(a, script) for a in round_.assignments.values()]
    for (peer_id, _), number in state.counted.items():  # and a newer one of a round that was dropped
        update = script.assignment(number, peer_id, "DELIVERED", folded_in=number)
        rows += [script.round(number, RoundStatus.COMMITTED), update]
    rows += [_assignment_row(a, script, carried=True) for a in state.carried.values()]
    rows += [script.round(4, RoundStatus.SKIPPED), script.assignment(4, "b", "DELIVERED")]
    for evaluation in state.evaluations.values():
        rows.append(
            script.evaluation(
                evaluation.version, deadline_at=evaluation.deadline_at, own_pending=evaluation.own_pending,
                own_metrics_json=json.dumps(evaluation.own_metrics),
            )
        )  # fmt: skip
        rows += [_assignment_row(a, script) for a in evaluation.assignments.values()]
    for warning in state.warnings.values():
        values = {name: value for name, value in vars(warning).items() if name != "cause"}
        key = {"run_id": state.run_id, "cause": warning.cause}
        rows.append(script.row("run.warned", "warning", key, None, **values))
    for standing in state.standings.values():
        values = asdict(standing)
        key = {"run_id": "r1", "peer_id": values.pop("peer_id")}
        rows.append(script.row("standing.set_aside", "standing", key, "", **values))
    return rows


def _assignment_row(a: AssignmentState, script: Any, *, carried: bool = False) -> Any:
    update = a.update
    measured: dict[str, Any] = {"metrics_json": json.dumps(dict(a.metrics)), "examples": a.examples}
    if update is not None:
        measured = {
            name: getattr(update, name) for name in ("digest", "size_bytes", "dense_bytes", "examples")
        }
        measured["source_digest"] = update.source_digest
        measured |= {"norm": update.norm, "metrics_json": json.dumps(dict(update.metrics))}
    return script.assignment(
        a.round, a.peer_id, a.status, role=a.work.role, attempt=a.attempt, base_version=a.work.base,
        reason=a.reason, offered_at=a.offered_at, retry=a.retry, preparing_at=a.preparing_at,
        prepared_at=a.prepared_at, training_at=a.training_at, uploading_at=a.uploading_at,
        deadline_at=a.deadline_at, carried=carried, **measured,
    )  # fmt: skip


def _spec() -> RunSpec:
    return RunSpec(
        task="examples.digits:Digits",
        rounds=2,
        task_options={"name": "ünï", "deep": [1, {"x": None}]},
        round=RoundTable(peers_min=2, quorum=0.5, attempts_max=2, deadline_seconds=10.0, grace_seconds=1.0),
        evaluate=EvaluateTable(every=1, on=("coordinator", "peers")),
    )


async def test_every_field_of_a_run_comes_back(store: Store, script: Any) -> None:
    state = replace(_full_state(_spec()), history=SortedMap([("a", PeerHistory(asked=1))]))
    samples = [
        state, *state.rounds.values(), *state.evaluations.values(), state.rounds[3].assignments["r1.3.a.1"],
    ]  # fmt: skip
    for sample in samples:
        for field in fields(sample):  # else the comparison below would not see a column that is forgotten
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            forgettable = (
                "update",
                "metrics",
                "examples",
                "evaluation",
            )  # of other assignments in this state
            assert getattr(sample, field.name) != default or field.name in forgettable, field.name
    await store.commit(_rows(state, script))

    (found,) = await store.load_runs()
    assert found == replace(state, history=found.history)
    a, b = found.history["a"], found.history["b"]  # of what the rows tell
    assert (a.asked, a.delivered, a.failed, a.last_round) == (3, 2, 1, 3)
    assert [(each.round, each.attempt) for each in a.works] == [(2, 1), (3, 1), (3, 2)]
    assert (b.asked, b.delivered, b.failed) == (4, 2, 0)


async def test_what_has_ended_is_left_out(store: Store, script: Any) -> None:
    ended = ("FINISHED", "FAILED", "CANCELLED")
    await store.commit([script.run(f"x{state}", state) for state in ended])
    await store.commit(
        [
            script.peer("a"),
            script.run(created_at=2.0, last_round=5, model_version=0),
            script.run("r0", "QUEUED", created_at=1.0),
            script.model(0),
            script.model(1),
            script.round(1, "COMMITTED"),
            script.round(2, "SKIPPED"),
            script.round(3, "FAILED"),
            script.round(4, "AGGREGATING", base_version=0),
            script.round(5, "PLANNED", base_version=0),
            script.assignment(1, "a", "DELIVERED", digest="old", norm=1.0),
            script.assignment(1, "a", "DELIVERED", role="evaluate", base_version=1),
            script.evaluation(1, "FINISHED"),
        ]
    )
    first, second = await store.load_runs()
    assert (first.run_id, first.status, first.model, first.rounds) == ("r0", RunStatus.QUEUED, None, {})
    assert sorted(second.rounds) == [4, 5]
    assert second.evaluations == {}
    assert sorted(second.models) == [0]
    assert all(not round_.assignments for round_ in second.rounds.values())


async def test_peers_come_back(store: Store, script: Any) -> None:
    facts = {
        "reason": "back", "epoch": 7, "device": "cuda:0", "muster_version": "0.1.0", "secret_hash": "h",
        "enrolled_at": 1.5, "seen_at": 2.5,
    }  # fmt: skip
    await store.commit([script.peer("b", "QUARANTINED", **facts), script.peer("a", "PENDING")])
    first, second = await store.load_peers()
    assert (first.peer_id, first.state, first.epoch, first.seen_at) == ("a", "PENDING", 0, None)
    assert {name: getattr(second, name) for name in facts} == facts
    assert second.state == "QUARANTINED"


class Life:
    """Drives the engine and compares, after each of its decisions, what the store gives back."""

    def __init__(self, store: Store, script: Any) -> None:
        self.store = store
        self.now = 100.0
        self.peers = {
            name: PeerView(peer_id=name, status=PeerStatus.ACTIVE, connected=True) for name in ("a", "b", "c")
        }
        self.offered: list[AssignmentState] = []
        self.aggregated: list[Aggregate] = []
        self.state: RunState | None = None
        self._script = script

    async def submit(self, spec: RunSpec) -> None:
        await self.store.commit([self._script.peer(name) for name in self.peers])
        event = RunSubmitted(run_id="r1", spec=spec, spec_toml="", request_id="q")
        await self._take(new_run(event, "r1", self.now))

    async def happen(self, kind: type[Event], /, **values: Any) -> None:
        assert self.state is not None
        self.now += 0.125
        event, schedule = kind(run_id="r1", **values), build_schedule(self.state.spec)
        await self._take(decide(self.state, event, self.now, self.peers, schedule))

    async def _take(self, decision: Any) -> None:
        assert decision.transitions, decision.reason
        await self.store.commit(decision.transitions)
        self.state = decision.state
        self.offered += [effect.assignment for effect in decision.effects if isinstance(effect, Offer)]
        self.aggregated += [effect for effect in decision.effects if isinstance(effect, Aggregate)]
        loaded = await self.store.load_runs()
        assert loaded == ([] if decision.state.status.ended else [decision.state])

    def pop_offers(self, role: str) -> list[AssignmentState]:
        found = [assignment for assignment in self.offered if assignment.work.role == role]
        self.offered = [assignment for assignment in self.offered if assignment.work.role != role]
        return found


async def test_a_whole_life_of_a_run_comes_back_after_every_commit(store: Store, script: Any) -> None:
    life = Life(store, script)
    await life.submit(_spec())
    model = ModelVersion(version=0, round=0, digest="m0", size_bytes=9, layout_digest="l")
    await life.happen(ModelReady, model=model)
    for number in (1, 2):
        first, second, third = life.pop_offers("train")
        for status in (AssignmentStatus.ACCEPTED, AssignmentStatus.TRAINING, AssignmentStatus.UPLOADING):
            await life.happen(AssignmentProgressed, assignment_id=first.assignment_id, status=status)
        await life.happen(
            AssignmentFailed, assignment_id=second.assignment_id, error_id="worker.crashed", message="it crashed",
            traceback="where", retry=True,
        )  # fmt: skip
        (again,) = life.pop_offers("train")
        assert again.attempt == 2
        await life.happen(PauseRequested)
        await life.happen(Restored)
        life.offered.clear()  # the same work, offered anew
        await life.happen(
            UpdateRefused, assignment_id=third.assignment_id, error_id="update.not_finite", message="NaN"
        )
        for assignment in (first, again):
            facts = UpdateFacts(
                digest=f"u{assignment.assignment_id}", size_bytes=3, dense_bytes=30, examples=4, norm=1.5,
                metrics={"loss": 0.5},
            )  # fmt: skip
            await life.happen(UpdateAdmitted, assignment_id=assignment.assignment_id, update=facts)
        (aggregate,) = life.aggregated
        life.aggregated.clear()
        await life.happen(ResumeRequested)
        treatments = tuple(
            Treatment(assignment_id=a.assignment_id, weight=0.5, score=1.0, selected=True, sentence="taken")
            for a in aggregate.updates
        )
        model = ModelVersion(
            version=number, round=number, digest=f"m{number}", size_bytes=9, layout_digest="l"
        )
        await life.happen(
            Aggregated,
            round=number,
            model=model,
            treatments=treatments,
            seconds=0.5,
            states={"m": f"s{number}"},
        )
        for assignment in life.pop_offers("evaluate"):
            await life.happen(
                AssignmentEvaluated, assignment_id=assignment.assignment_id, metrics={"acc": 0.5}, examples=8
            )
        await life.happen(OwnEvaluated, version=number, metrics={"loss": 1.0 / number})
    assert life.state is not None
    assert life.state.status is RunStatus.FINISHED

    run = await store.run("r1")
    assert run is not None
    assert (run.state, run.committed, run.model_version, run.model_digest) == ("FINISHED", 2, 2, "m2")
    assert run.metrics == {"loss": 0.5, "peers/acc": 0.5}
    assert run.bytes_up_dense == 120
    assert await store.optimizer_states("r1", 2) == {"m": "s2"}


async def test_a_stopped_run_comes_back_no_more(store: Store, script: Any) -> None:
    life = Life(store, script)
    await life.submit(_spec())
    model = ModelVersion(version=0, round=0, digest="m0", size_bytes=9, layout_digest="l")
    await life.happen(ModelReady, model=model)
    life.now += 1000.0
    await life.happen(Tick)
    await life.happen(StopRequested, reason="enough")
    assert await store.load_runs() == []
    run = await store.run("r1")
    assert run is not None
    assert run.state == "CANCELLED"
