"""The evaluation of a model version, on the coordinator, on peers or on both. Rounds never wait for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coordinator.engine import assignments, preparing, standings
from coordinator.engine.draft import Draft, finite, metrics_json
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


def due(spec: RunSpec, version: int) -> bool:
    every = spec.evaluate.every
    return every > 0 and (version % every == 0 or version == spec.rounds)


def on_coordinator(spec: RunSpec) -> bool:
    """Whether the coordinator ever evaluates a version of the run."""
    return spec.evaluate.every > 0 and "coordinator" in spec.evaluate.on


def start(draft: Draft, model: ModelVersion) -> None:
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


def own_evaluated(draft: Draft, event: OwnEvaluated) -> str | None:
    """Tells why the event is ignored, or None."""
    evaluation = draft.state.evaluations.get(event.version)
    if evaluation is None or not evaluation.own_pending:
        return f"no evaluation of version {event.version} waits for the coordinator"
    metrics = finite(event.metrics)
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
        values={"own_pending": False, "own_metrics_json": metrics_json(metrics)},
        reason=reason,
        round=evaluation.round,
        data={"version": event.version, "metrics": metrics},
    )
    known = draft.state.source_digest
    if known and event.source_digest and event.source_digest != known:
        draft.warn(
            f"sources.changed:{event.source_digest[:12]}",
            f"the coordinator's source code of {draft.state.spec.task} has changed since this run began: it "
            f"evaluates with digest {event.source_digest[:12]}, not {known[:12]}; submit the run anew",
            round=evaluation.round,
        )
    return None


def own_preparing(draft: Draft, event: OwnPreparing) -> str | None:
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


def finish_complete(draft: Draft) -> None:
    """Ends those that everybody has answered, and those whose time is over."""
    for version, evaluation in tuple(draft.state.evaluations.items()):
        waits = evaluation.own_pending or any(not a.status.ended for a in evaluation.assignments.values())
        if not waits:
            finish(draft, version, f"the evaluation of version {version} is complete")
        elif draft.now >= preparing.evaluation_due(evaluation, draft.state.spec.round):
            finish(draft, version, f"the evaluation of version {version} ends at its deadline")


def finish(draft: Draft, version: int, reason: str) -> None:
    for assignment in draft.state.evaluations[version].assignments.values():
        if not assignment.status.ended:
            assignments.expire(draft, assignment, reason)
    evaluation = draft.state.evaluations[version]
    examples_max = draft.state.spec.aggregation.examples_max
    metrics = {**evaluation.own_metrics, **_peers_mean(evaluation, examples_max)}
    told = ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
    reason = f"{reason}: {told or 'no metrics'}"
    draft.put_evaluation(evaluation, ended=True)
    draft.record(
        "evaluation.finished",
        "evaluation",
        {"run_id": draft.state.run_id, "version": version},
        before=str(EvaluationStatus.RUNNING),
        values={
            "state": str(EvaluationStatus.FINISHED),
            "own_pending": False,
            "metrics_json": metrics_json(metrics),
        },
        reason=reason,
        round=evaluation.round,
        data={"version": version, "metrics": metrics},
    )


def restore(draft: Draft, version: int) -> None:
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


def _offer(draft: Draft, evaluation: EvaluationState, peer_id: str) -> None:
    run_id = draft.state.run_id
    assignment = AssignmentState(
        assignment_id=f"{run_id}.e{evaluation.version}.{peer_id}.1",
        run_id=run_id,
        round=evaluation.round,
        peer_id=peer_id,
        role="evaluate",
        attempt=1,
        base_version=evaluation.version,
        status=AssignmentStatus.OFFERED,
        reason=f"{peer_id} is asked to evaluate version {evaluation.version}",
        offered_at=draft.now,
    )
    assignments.offer(draft, assignment, evaluation.deadline_at)


def _peers_mean(evaluation: EvaluationState, examples_max: int) -> dict[str, float]:
    """Each metric's mean over the peers that report it, weighted by their (capped) example counts."""
    reports = [
        (assignment.metrics, min(assignment.examples, examples_max))
        for assignment in sorted(evaluation.assignments.values(), key=lambda a: a.peer_id)
        if assignment.status is AssignmentStatus.DELIVERED
    ]
    names = sorted({name for metrics, _ in reports for name in metrics})
    return {f"peers/{name}": _mean([(m[name], n) for m, n in reports if name in m]) for name in names}


def _mean(values: Sequence[tuple[float, int]]) -> float:
    total = sum(weight for _, weight in values)
    if total == 0:  # nobody counts its examples: all count the same
        return sum(value for value, _ in values) / len(values)
    return sum(value * weight for value, weight in values) / total
