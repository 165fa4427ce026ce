"""A run under test: the engine's state beside the rows that its transitions write, and the log of its events."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest

from coordinator.engine import invariants
from coordinator.engine.decide import decide, new_run
from coordinator.engine.history import PeerHistory, work_done
from coordinator.engine.sorted_map import SortedMap
from coordinator.engine.state import (
    Aggregate,
    Aggregated,
    AssignmentEvaluated,
    AssignmentFailed,
    AssignmentState,
    AssignmentStatus,
    Decision,
    Effect,
    EvaluationState,
    Event,
    Fold,
    ModelReady,
    ModelVersion,
    Offer,
    PeerGone,
    PeerStanding,
    PeerStatus,
    PeerView,
    Rest,
    Restored,
    RoundState,
    RoundStatus,
    RunState,
    RunStatus,
    RunSubmitted,
    Tick,
    Transition,
    Treatment,
    UpdateAdmitted,
    WakeAt,
    WarningState,
    versions_in_use,
)
from coordinator.engine.synchronous import Synchronous
from coordinator.engine.works import Works
from exchange.facts import UpdateFacts
from muster.spec.model import RunSpec
from muster.task.metrics import from_json
from muster.work import Work, evaluates

E = TypeVar("E", bound=Effect)
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LoggedEvent:
    sequence: int
    at: float
    kind: str
    run_id: str
    round: int
    assignment_id: str
    peer_id: str
    data: Mapping[str, Any]
    reason: str


class Rows:
    """The tables, as a store would keep them: inserts that must be new, updates that compare and set."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Row]] = {}
        self.log: list[LoggedEvent] = []

    def write(self, transition: Transition) -> None:
        table = self.tables.setdefault(transition.entity, {})
        key = json.dumps(dict(transition.key), sort_keys=True)
        assert not set(transition.key) & set(transition.values)
        if transition.before is None:
            assert key not in table, f"{transition.kind}: {key} is there already"
            table[key] = {**transition.key, **transition.values}
        elif transition.before == "":
            table[key] = {**transition.key, **transition.values}
        else:
            assert table[key]["state"] == transition.before, f"{transition.kind}: {table[key]}"
            table[key].update(transition.values)
        if transition.kind:
            event = LoggedEvent(
                sequence=len(self.log) + 1,
                at=transition.at,
                kind=transition.kind,
                run_id=transition.run_id,
                round=transition.round,
                assignment_id=transition.assignment_id,
                peer_id=transition.peer_id,
                data=json.loads(json.dumps(dict(transition.data))),
                reason=transition.reason,
            )
            assert event.reason, f"{event.kind} has no reason"
            self.log.append(event)

    def all(self, entity: str) -> list[Row]:
        return list(self.tables.get(entity, {}).values())

    def _history(self) -> SortedMap[str, PeerHistory]:
        found: dict[str, PeerHistory] = {}
        for row in self.all("assignment"):
            if not row["evaluation"]:
                found[row["peer_id"]] = found.get(row["peer_id"], PeerHistory()).asks(row["round"])
        ended = [row for row in self.all("assignment") if AssignmentStatus(row["state"]).ended]
        for row in sorted(ended, key=lambda row: (row["round"], row["attempt"])):
            if not row["evaluation"]:
                work = work_done(_assignment(row), row["ended_at"])
                found[row["peer_id"]] = found[row["peer_id"]].ends(work)
        return SortedMap(found.items())

    def load(self, run_id: str) -> RunState:
        (run,) = (row for row in self.all("run") if row["run_id"] == run_id)
        models = {row["version"]: _model(row) for row in self.all("model")}
        model = models.get(run["model_version"])
        work = [_assignment(row) for row in self.all("assignment")]
        rounds = {
            row["number"]: _round(row, work)
            for row in self.all("round")
            if not RoundStatus(row["state"]).ended
        }
        evaluations = {
            row["version"]: _evaluation(row, work)
            for row in self.all("evaluation")
            if row["state"] == "RUNNING"
        }
        counted: dict[tuple[str, str], int] = {}
        carried = Works((), [_assignment(row) for row in self.all("assignment") if row.get("carried")])
        for row in self.all("assignment"):
            if row.get("folded_in"):
                lineage = (row["peer_id"], Work.from_json(row["work_json"]).role)
                counted[lineage] = max(row["round"], counted.get(lineage, 0))
        used = versions_in_use(model, rounds, evaluations, carried)
        return RunState(
            run_id=run_id,
            spec=RunSpec.model_validate_json(run["spec_json"]),
            status=RunStatus(run["state"]),
            reason=run["reason"],
            created_at=run["created_at"],
            source_digest=run.get("source_digest", ""),
            model=model,
            rounds=rounds,
            evaluations=evaluations,
            carried=carried,
            models={version: models[version] for version in sorted(used)},
            counted=counted,
            history=self._history(),
            standings={row["peer_id"]: _standing(row) for row in self.all("standing")},
            rest=_rest(run),
            last_round=run["last_round"],
            committed=run["committed"],
            skipped=run["skipped"],
            skipped_in_row=run["skipped_in_row"],
            warnings={row["cause"]: _warning(row) for row in self.all("warning")},
        )


def _warning(row: Row) -> WarningState:
    return WarningState(**{name: value for name, value in row.items() if name != "run_id"})


def _standing(row: Row) -> PeerStanding:
    return PeerStanding(**{name: value for name, value in row.items() if name != "run_id"})


def _rest(row: Row) -> Rest | None:
    return None if row["rest_until"] is None else Rest(until=row["rest_until"], present=row["rest_present"])


def _model(row: Row) -> ModelVersion:
    return ModelVersion(
        version=row["version"],
        round=row["round"],
        digest=row["digest"],
        size_bytes=row["size_bytes"],
        layout_digest=row["layout_digest"],
    )


def _assignment(row: Row) -> AssignmentState:
    metrics = from_json(row.get("metrics_json") or "{}")
    work = Work.from_json(row["work_json"])
    answers = evaluates(work.role)
    update = None
    if row.get("digest"):
        update = UpdateFacts(
            digest=row["digest"],
            size_bytes=row["size_bytes"],
            dense_bytes=row["dense_bytes"],
            examples=row["examples"],
            norm=row["norm"],
            source_digest=row["source_digest"],
            metrics=metrics,
        )
    return AssignmentState(
        assignment_id=row["assignment_id"],
        run_id=row["run_id"],
        round=row["round"],
        peer_id=row["peer_id"],
        work=work,
        evaluation=row["evaluation"],
        attempt=row["attempt"],
        status=AssignmentStatus(row["state"]),
        reason=row["reason"],
        offered_at=row["offered_at"],
        preparing_at=row.get("preparing_at"),
        prepared_at=row.get("prepared_at"),
        training_at=row.get("training_at"),
        uploading_at=row.get("uploading_at"),
        deadline_at=row.get("deadline_at"),
        update=update,
        metrics=metrics if answers else {},
        examples=row.get("examples", 0) if answers else 0,
        retry=row["retry"],
    )


def _round(row: Row, work: list[AssignmentState]) -> RoundState:
    return RoundState(
        number=row["number"],
        status=RoundStatus(row["state"]),
        reason=row["reason"],
        base_version=row["base_version"],
        cohort=tuple(json.loads(row["cohort_json"])),
        roles=json.loads(row["roles_json"]),
        needed=row["needed"],
        quorum=row["quorum"],
        planned_at=row["planned_at"],
        opened_at=row["opened_at"],
        deadline_at=row["deadline_at"],
        grace_until=row.get("grace_until"),
        fold=Fold.from_json(row.get("fold_json", "")),
        assignments=Works((), [a for a in work if not a.evaluation and a.round == row["number"]]),
    )


def _evaluation(row: Row, work: list[AssignmentState]) -> EvaluationState:
    version = row["version"]
    return EvaluationState(
        version=version,
        round=row["round"],
        deadline_at=row["deadline_at"],
        assignments=Works((), [a for a in work if a.evaluation and a.work.base == version]),
        own_pending=row["own_pending"],
        own_metrics=from_json(row["own_metrics_json"]),
    )


class World:
    """One run, its peers and a clock that a test moves. Every decision is checked against rows and log."""

    def __init__(self, spec: RunSpec, *, peers: str, rule_needs: int = 1, more_than_2f: bool = False) -> None:
        self.now = 1000.0
        self.peers: dict[str, PeerView] = {}
        for peer_id in peers:
            self.join(peer_id, tick=False)
        self.rows = Rows()
        self.effects: list[Effect] = []  # of the newest decision
        self.committed: list[Transition] = []
        self.checked = True
        table = spec.aggregation
        self.schedule = Synchronous(
            spec,
            refuse=lambda n, cohort: _bound(
                n,
                2 * table.faults_of(cohort) + 1 if more_than_2f else rule_needs,
                table.format_faults(cohort),
            ),
        )
        event = RunSubmitted(run_id="run", spec=spec, spec_toml="task = ...", request_id="request")
        self._take(new_run(event, "run", self.now))

    # -- driving -----------------------------------------------------------------------------------------

    def send(self, event: Event) -> Decision:
        before = self.state
        decision = decide(before, event, self.now, self.peers, self.schedule)
        assert decision.reason, f"{event} is answered with no reason"
        if not decision.accepted:
            assert (decision.state, decision.transitions, decision.effects) == (before, (), ())
        return self._take(decision)

    def _take(self, decision: Decision) -> Decision:
        for transition in decision.transitions:
            self.rows.write(transition)
        self.state = decision.state
        self.effects = list(decision.effects)
        self.committed = list(decision.transitions)
        self.decision = decision
        if self.checked:
            self.check()
        return decision

    def check(self) -> None:
        assert self.rows.load("run") == self.state
        assert invariants.check(self.rows.log) == []

    def start(self) -> Decision:
        return self.send(ModelReady(run_id="run", model=version(0, 0)))

    def tick(self, seconds: float = 0.0) -> Decision:
        self.now += seconds
        return self.send(Tick(run_id="run"))

    def restart(self) -> Decision:
        """The coordinator was killed: the state is what the rows say, and nobody is connected."""
        self.state = self.rows.load("run")
        for peer in list(self.peers.values()):
            self.peers[peer.peer_id] = replace(peer, connected=False)
        return self.send(Restored(run_id="run"))

    def join(self, peer_id: str, *, tick: bool = True, instance: str = "first") -> None:
        self.peers[peer_id] = PeerView(
            peer_id=peer_id, status=PeerStatus.ACTIVE, connected=True, instance=instance
        )
        if tick:
            self.tick()

    def leave(self, peer_id: str, status: PeerStatus = PeerStatus.LOST) -> Decision:
        self.peers[peer_id] = replace(self.peers[peer_id], status=status, connected=False)
        return self.send(PeerGone(run_id="run", peer_id=peer_id, reason=f"it is {status}"))

    def work(self, peer_id: str) -> AssignmentState:
        """The newest training assignment of a peer in the round that is live."""
        (round_,) = self.state.rounds.values()
        return max((a for a in round_.assignments.values() if a.peer_id == peer_id), key=lambda a: a.attempt)

    def deliver(self, peer_ids: str, metrics: Mapping[str, float] | None = None) -> Decision:
        for peer_id in peer_ids:
            update = facts(peer_id, metrics or {})
            event = UpdateAdmitted(
                run_id="run", assignment_id=self.work(peer_id).assignment_id, update=update
            )
            decision = self.send(event)
        return decision

    def fail(self, peer_id: str, *, retry: bool, error_id: str = "worker.crashed") -> Decision:
        return self.send(
            AssignmentFailed(
                run_id="run",
                assignment_id=self.work(peer_id).assignment_id,
                error_id=error_id,
                message="the worker was killed by signal 9",
                traceback="Traceback ...",
                retry=retry,
            )
        )

    def aggregated(self) -> Decision:
        """The result of the aggregation that is ordered."""
        (round_,) = (r for r in self.state.rounds.values() if r.status is RoundStatus.AGGREGATING)
        return self.send(self.result(round_.number))

    def result(self, number: int) -> Aggregated:
        assert self.state.model is not None
        round_ = self.state.rounds.get(number)
        return Aggregated(
            run_id="run",
            round=number,
            model=version(self.state.model.version + 1, number),
            treatments=tuple(
                Treatment(
                    assignment_id=a.assignment_id,
                    weight=0.5,
                    score=1.0,
                    selected=True,
                    sentence="taken as it is",
                )
                for a in (round_.delivered if round_ is not None else ())
            ),
            seconds=0.25,
            states={"velocity": f"state-{number}"},
        )

    def play_round(self, peer_ids: str) -> None:
        self.deliver(peer_ids)
        self.aggregated()

    def evaluated(self, peer_id: str, number: int, metrics: Mapping[str, float], examples: int) -> Decision:
        return self.send(
            AssignmentEvaluated(
                run_id="run", assignment_id=f"run.e{number}.{peer_id}.1", metrics=metrics, examples=examples
            )
        )

    # -- looking -----------------------------------------------------------------------------------------

    def kinds(self) -> list[str]:
        """Of the newest decision, in order, without rows that have no event."""
        return [transition.kind for transition in self.committed if transition.kind]

    def ordered(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def offered(self) -> list[str]:
        return [offer.assignment.assignment_id for offer in self.ordered(Offer)]

    def aggregates(self) -> list[tuple[str, ...]]:
        return [tuple(a.peer_id for a in order.updates) for order in self.ordered(Aggregate)]

    def wakes(self) -> list[float]:
        return [wake.at for wake in self.ordered(WakeAt)]

    def reasons(self, kind: str) -> list[str]:
        return [event.reason for event in self.rows.log if event.kind == kind]

    def row(self, entity: str, **key: Any) -> Row:
        (found,) = (
            row for row in self.rows.all(entity) if all(row[name] == value for name, value in key.items())
        )
        return found


def version(number: int, round: int) -> ModelVersion:
    return ModelVersion(
        version=number, round=round, digest=f"model-{number}", size_bytes=100, layout_digest="layout"
    )


def facts(peer_id: str, metrics: Mapping[str, float]) -> UpdateFacts:
    return UpdateFacts(
        digest=f"update-{peer_id}", size_bytes=10, dense_bytes=40, examples=7, norm=1.5, metrics=metrics
    )


def _bound(n: int, need: int, told: str) -> str | None:
    return None if n >= need else f"the rule needs n >= {need}: n is {n}" + (f"; {told}" if told else "")


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world() -> MakeWorld:
    """make(peers="abc", rule_needs=1, more_than_2f=False, started=True) and the spec's keys and tables."""

    def make(
        *,
        peers: str = "abc",
        rule_needs: int = 1,
        more_than_2f: bool = False,
        started: bool = True,
        **tables: Any,
    ) -> World:
        always = {"task": "digits:Digits", "rounds": 3, "evaluate": {"every": 0}}
        tables = {**always, "aggregation": {"rule": "mean"}, **tables}
        tables["round"] = {"quorum": 1.0, "grace_seconds": 0.0, **tables.get("round", {})}
        world = World(
            RunSpec.model_validate(tables), peers=peers, rule_needs=rule_needs, more_than_2f=more_than_2f
        )
        if started:
            world.start()
        return world

    return make
