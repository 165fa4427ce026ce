"""The life of a run: submitted, running or paused, and ended in one of three ways."""

from __future__ import annotations

from coordinator.engine import assignments, evaluations, rounds, standings
from coordinator.engine.decision_builder import DecisionBuilder
from coordinator.engine.state import (
    AlreadySo,
    Decision,
    ModelReady,
    PrepareModel,
    RoundState,
    RunState,
    RunStatus,
    RunSubmitted,
    RunWarned,
)
from coordinator.engine.works import Works


def new_run(event: RunSubmitted, run_id: str, now: float) -> Decision:
    """A run that waits for its initial model. `run_id` is the caller's, unique for ever."""
    spec = event.spec
    name = spec.name or spec.task.partition(":")[2]
    reason = f"{name} is submitted; its initial model is being made"
    state = RunState(run_id=run_id, spec=spec, status=RunStatus.QUEUED, reason=reason, created_at=now)
    draft = DecisionBuilder(state, now, actor=event.actor)
    draft.record_run(
        "run.submitted",
        reason,
        insert={
            "name": name,
            "task": spec.task,
            "spec_json": spec.canonical_json(),
            "spec_digest": spec.digest,
            "spec_toml": event.spec_toml,
            "request_id": event.request_id,
            "created_at": now,
        },
        data={"rounds": spec.rounds, "spec_digest": spec.digest},
    )
    for cause, sentence in event.warnings:
        draft.warn(cause, sentence)
    draft.order(PrepareModel(run_id=run_id))
    return draft.decision()


def start(draft: DecisionBuilder, event: ModelReady) -> str | None:
    """Tells why the event is ignored, or None."""
    if draft.state.status is not RunStatus.QUEUED:
        return f"the run is {draft.state.status} and has its initial model already"
    if event.model.version != 0:
        return f"version {event.model.version} is not an initial model"
    rounds.create_model(draft, event.model)
    reason = "the initial model is ready"
    draft.change(status=RunStatus.RUNNING, reason=reason, source_digest=event.source_digest)
    draft.record_run(
        "run.started",
        reason,
        values={"started_at": draft.now, "source_digest": event.source_digest},
        data={"source_digest": event.source_digest},
    )
    return None


def pause(draft: DecisionBuilder) -> str | None:
    """Pauses the run: live rounds go on, no new one opens."""
    if draft.state.status is RunStatus.PAUSED:
        return AlreadySo("the run is PAUSED already")
    if draft.state.status is not RunStatus.RUNNING:
        return f"the run is {draft.state.status}; only a running one can be paused"
    live = sorted(draft.state.rounds)
    end = f"; round {live[-1]} goes on to its end" if live else ""
    reason = f"paused on request: no new round opens{end}"
    draft.change(status=RunStatus.PAUSED, reason=reason)
    draft.record_run("run.paused", reason)
    return None


def pause_exhausted(draft: DecisionBuilder) -> None:
    """Too many rounds were skipped in a row: a person has to mend what costs them. Cause and cure come first."""
    state = draft.state
    if state.status is not RunStatus.RUNNING or state.skipped_in_row < state.spec.round.skips_max:
        return
    count = "1 round was" if state.skipped_in_row == 1 else f"{state.skipped_in_row} rounds in a row were"
    reason = (
        f"{standings.format_causes(state) or state.reason}; mend that, then: muster run resume {state.run_id}; "
        f"the run is paused, since {count} skipped (round.skips_max)"
    )
    draft.change(status=RunStatus.PAUSED, reason=reason, rest=None)
    draft.record_run("run.paused", reason, data={"skipped_in_row": state.skipped_in_row})


def pause_hopeless(draft: DecisionBuilder, round_: RoundState) -> None:
    """A round was skipped and the next would be too."""
    state = draft.state
    if state.status is not RunStatus.RUNNING or not standings.hopeless(state, round_):
        return
    reason = (
        f"{standings.format_causes(state)}; mend that, then: muster run resume {state.run_id}; "
        f"the run is paused, since the task works at no site of round {round_.number}"
    )
    draft.change(status=RunStatus.PAUSED, reason=reason, rest=None)
    draft.record_run("run.paused", reason, data={"skipped_in_row": state.skipped_in_row})


def resume(draft: DecisionBuilder) -> str | None:
    """A paused run goes on; whoever was set aside is asked again, in one that runs too."""
    if draft.state.status is RunStatus.RUNNING:
        if standings.release_all(draft, "on request"):
            draft.change(skipped_in_row=0, rest=None)
            return None
        return AlreadySo("the run is RUNNING, and nobody is set aside in it")
    if draft.state.status is not RunStatus.PAUSED:
        return f"the run is {draft.state.status}; only a paused one can be resumed"
    standings.release_all(draft, "the run is resumed")
    reason = "resumed on request"
    draft.change(status=RunStatus.RUNNING, reason=reason, skipped_in_row=0, rest=None)
    draft.record_run("run.resumed", reason)
    return None


def wait(draft: DecisionBuilder, reason: str) -> None:
    """Records what a run without a live round waits for, once for each new sentence."""
    state = draft.state
    if state.status is RunStatus.RUNNING and not state.rounds and state.reason != reason:
        draft.change(reason=reason)
        draft.record_run("run.waiting", reason)


def warned(draft: DecisionBuilder, event: RunWarned) -> None:
    """As somebody outside the engine has seen it."""
    draft.warn(event.cause, event.reason, round=event.round, peer_id=event.peer_id)


def finish(draft: DecisionBuilder, reason: str) -> None:
    """Ends the run as FINISHED."""
    told = standings.format_set_aside(draft.state)
    if told:
        reason = f"{told}; all the same, {reason}"
    _end(draft, "run.finished", RunStatus.FINISHED, reason)


def fail(draft: DecisionBuilder, reason: str, *, traceback: str = "") -> None:
    """Ends the run as FAILED, with its live rounds."""
    _end(draft, "run.failed", RunStatus.FAILED, reason, **({"traceback": traceback} if traceback else {}))


def cancel(draft: DecisionBuilder, reason: str) -> None:
    """Ends the run as CANCELLED, with its live rounds."""
    told = f"cancelled: {reason}" if reason else "cancelled on request"
    _end(draft, "run.cancelled", RunStatus.CANCELLED, told)


def _end(draft: DecisionBuilder, kind: str, status: RunStatus, reason: str, **data: str) -> None:
    """Nothing outlives its run: live rounds fail, evaluations end with what they have."""
    for number in tuple(draft.state.rounds):
        rounds.fail(draft, number, f"round {number} ends with its run: {reason}")
    for assignment_id in tuple(draft.state.carried.live):
        assignments.expire(draft, draft.state.carried[assignment_id], f"the run has ended: {reason}")
    draft.change(carried=Works())
    for version in tuple(draft.state.evaluations):
        evaluations.finish(draft, version, f"the evaluation of version {version} ends with its run")
    draft.change(status=status, reason=reason)
    state = draft.state
    draft.record_run(
        kind,
        reason,
        values={"ended_at": draft.now},
        data={"rounds": state.spec.rounds, "committed": state.committed, "skipped": state.skipped, **data},
    )
