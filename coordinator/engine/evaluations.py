"""The evaluation of a model version, on the coordinator, on peers or on both. Rounds never wait for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coordinator.engine import assignments, preparing, standings
from coordinator.engine.decision_builder import DecisionBuilder, last_line
from coordinator.engine.means import peers_mean
from coordinator.engine.state import (
    AssignmentState,
    AssignmentStatus,
    EvaluateOwn,
    EvaluationState,
    EvaluationStatus,
    ModelVersion,
    OwnEvaluated,
    OwnPreparing,
)
from muster.spec.model import RunSpec
from muster.task.metrics import accepted, not_finite, plain_all, shown, to_json
from muster.work import EVALUATE, Work

METRICS_TOLD = 10  # in the sentence that ends an evaluation
LATE_TOLD = 5


def due(spec: RunSpec, version: int) -> bool:
    """Whether the spec asks for an evaluation of this version."""
    every = spec.evaluate.every
    return every > 0 and (version % every == 0 or version == spec.rounds)


def on_coordinator(spec: RunSpec) -> bool:
    """Whether the coordinator ever evaluates a version of the run."""
    return spec.evaluate.every > 0 and "coordinator" in spec.evaluate.on


def start(draft: DecisionBuilder, model: ModelVersion) -> None:
    """Of the newest version, by everybody who is there now."""
    spec = draft.state.spec
    version = model.version
    own = "coordinator" in spec.evaluate.on
    asked = standings.eligible(draft.state, draft.peers) if "peers" in spec.evaluate.on else []
    evaluation = EvaluationState(
        version=version,
        round=model.round,
        deadline_at=draft.now + spec.round.deadline_seconds,
        own_pending=own,
    )
    where = [*(["the coordinator"] if own else []), *([f"{len(asked)} peers"] if asked else [])]
    reason = f"version {version} is evaluated on {' and '.join(where) or 'nobody: no peer is connected'}"
    draft.put_evaluation(evaluation)
    draft.record(
        "evaluation.started",
        "evaluation",
        {"run_id": draft.state.run_id, "version": version},
        before=None,
        values={
            "round": model.round,
            "state": str(EvaluationStatus.RUNNING),
            "deadline_at": evaluation.deadline_at,
            "own_pending": own,
            "own_metrics_json": "{}",
        },
        reason=reason,
        round=model.round,
        data={"version": version, "peers": asked},
    )
    for peer_id in asked:
        _offer(draft, evaluation, peer_id)
    if own:
        draft.order(EvaluateOwn(run_id=draft.state.run_id, model=model))
    finish_complete(draft)


def own_evaluated(draft: DecisionBuilder, event: OwnEvaluated) -> str | None:
    """Tells why the event is ignored, or None."""
    evaluation = draft.state.evaluations.get(event.version)
    if evaluation is None or not evaluation.own_pending:
        return f"no evaluation of version {event.version} waits for the coordinator"
    metrics, _ = accepted(event.metrics)
    reason = f"the coordinator evaluated version {event.version}"
    if event.error:
        reason = f"the coordinator could not evaluate version {event.version}: {event.error}"
    elif not metrics:
        reason = f"the task has nothing to evaluate version {event.version} on at the coordinator"
    draft.put_evaluation(replace(evaluation, own_pending=False, own_metrics=metrics))
    draft.record(
        "evaluation.own",
        "evaluation",
        {"run_id": draft.state.run_id, "version": event.version},
        before=str(EvaluationStatus.RUNNING),
        values={"own_pending": False, "own_metrics_json": to_json(metrics)},
        reason=reason,
        round=evaluation.round,
        data={"version": event.version, "metrics": plain_all(metrics)},
    )
    _warn_of_own(draft, event, metrics, evaluation.round)
    known = draft.state.source_digest
    if known and event.source_digest and event.source_digest != known:
        draft.warn(
            f"sources.changed:{event.source_digest[:12]}",
            f"the coordinator's source code of {draft.state.spec.task} has changed since this run began: it "
            f"evaluates with digest {event.source_digest[:12]}, not {known[:12]}; submit the run anew",
            round=evaluation.round,
        )
    return None


def _warn_of_own(
    draft: DecisionBuilder, event: OwnEvaluated, metrics: Mapping[str, float], round: int
) -> None:
    if event.error:
        why = last_line(event.traceback) or event.error
        draft.warn(
            "evaluate.failed:coordinator",
            f"the coordinator could not evaluate version {event.version}: {why}",
            round=round,
            traceback=event.traceback[-assignments.TRACEBACK_CHARACTERS_MAX :],
        )
    for number, sentence in enumerate(event.warnings):
        draft.warn(f"metrics.evaluate.{number}:coordinator", f"the coordinator: {sentence}", round=round)
    if wrong := not_finite(metrics):
        draft.warn(
            "metrics.not_finite:coordinator",
            f"the coordinator's evaluation of version {event.version} gives {wrong}",
            round=round,
        )


def own_preparing(draft: DecisionBuilder, event: OwnPreparing) -> str | None:
    """What the coordinator's data take is not taken from the evaluation's time. Tells why the event is ignored, or
    None."""
    evaluation = draft.state.evaluations.get(event.version)
    if evaluation is None or not evaluation.own_pending:
        return f"no evaluation of version {event.version} waits for the coordinator"
    table = draft.state.spec.round
    seconds = table.deadline_seconds if event.done else table.prepare_seconds
    what = "has loaded its data" if event.done else "is preparing (loading its data)"
    reason = f"the coordinator {what} to evaluate version {event.version}; it has {seconds:g} s"
    deadline_at = draft.now + seconds
    draft.put_evaluation(replace(evaluation, deadline_at=deadline_at))
    draft.record(
        "evaluation.postponed",
        "evaluation",
        {"run_id": draft.state.run_id, "version": event.version},
        before=str(EvaluationStatus.RUNNING),
        values={"deadline_at": deadline_at},
        reason=reason,
        round=evaluation.round,
        data={"version": event.version, "deadline_at": deadline_at},
    )
    return None


def finish_complete(draft: DecisionBuilder) -> None:
    """Ends those that everybody has answered, and those whose time is over."""
    for version, evaluation in tuple(draft.state.evaluations.items()):
        waits = evaluation.own_pending or evaluation.assignments.live_count > 0
        if not waits:
            finish(draft, version, f"the evaluation of version {version} is complete")
        elif draft.now >= preparing.evaluation_due(evaluation, draft.state.spec.round):
            _warn_of_late(draft, evaluation)
            finish(draft, version, f"the evaluation of version {version} ends at its deadline")


def finish(draft: DecisionBuilder, version: int, reason: str) -> None:
    """Closes an evaluation with the metrics that there are."""
    for assignment in draft.state.evaluations[version].assignments.values():
        if not assignment.status.ended:
            assignments.expire(draft, assignment, reason)
    evaluation = draft.state.evaluations[version]
    mean = peers_mean(evaluation.assignments.values(), draft.state.spec.aggregation.examples_max)
    for cause, sentence in mean.warnings:
        draft.warn(cause, f"{sentence} (version {version})", round=evaluation.round)
    metrics = {**evaluation.own_metrics, **mean.metrics}
    reason = f"{reason}: {shown(metrics, METRICS_TOLD) or 'no metrics'}"
    draft.put_evaluation(evaluation, ended=True)
    draft.record(
        "evaluation.finished",
        "evaluation",
        {"run_id": draft.state.run_id, "version": version},
        before=str(EvaluationStatus.RUNNING),
        values={
            "state": str(EvaluationStatus.FINISHED),
            "own_pending": False,
            "metrics_json": to_json(metrics),
        },
        reason=reason,
        round=evaluation.round,
        data={"version": version, "metrics": plain_all(metrics)},
    )


def _warn_of_late(draft: DecisionBuilder, evaluation: EvaluationState) -> None:
    late = ["the coordinator"] if evaluation.own_pending else []
    late += sorted(a.peer_id for a in evaluation.assignments.values() if not a.status.ended)
    more = f" and {len(late) - LATE_TOLD} more" if len(late) > LATE_TOLD else ""
    draft.warn(
        "evaluate.late",
        f"the evaluation of version {evaluation.version} was not done at its deadline by "
        f"{', '.join(late[:LATE_TOLD])}{more}",
        round=evaluation.round,
    )


def restore(draft: DecisionBuilder, version: int) -> None:
    """As for a round: the time away is given back, and the coordinator's own share is ordered again."""
    evaluation = draft.state.evaluations[version]
    seconds = draft.state.spec.round.deadline_seconds
    deadline_at = draft.now + seconds
    assignments.restore(draft, evaluation.assignments)
    draft.put_evaluation(replace(draft.state.evaluations[version], deadline_at=deadline_at))
    draft.record(
        "evaluation.restored",
        "evaluation",
        {"run_id": draft.state.run_id, "version": version},
        before=str(EvaluationStatus.RUNNING),
        values={"deadline_at": deadline_at},
        reason=(
            f"the evaluation of version {version} goes on after a restart of the coordinator: "
            f"it has {seconds:g} s again"
        ),
        round=evaluation.round,
        data={"version": version, "deadline_at": deadline_at},
    )
    if evaluation.own_pending:
        draft.order(EvaluateOwn(run_id=draft.state.run_id, model=draft.state.models[version]))


def _offer(draft: DecisionBuilder, evaluation: EvaluationState, peer_id: str) -> None:
    run_id = draft.state.run_id
    assignment = AssignmentState(
        assignment_id=f"{run_id}.e{evaluation.version}.{peer_id}.1",
        run_id=run_id,
        round=evaluation.round,
        peer_id=peer_id,
        work=Work(role=EVALUATE, base=evaluation.version),
        evaluation=True,
        attempt=1,
        status=AssignmentStatus.OFFERED,
        reason=f"{peer_id} is asked to evaluate version {evaluation.version}",
        offered_at=draft.now,
    )
    assignments.offer(draft, assignment, evaluation.deadline_at)
