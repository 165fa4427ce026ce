"""The run engine: one event in, one decision out.

    decide(state, event, now, peers, schedule) -> Decision(state, transitions, effects, reason)

A pure function. An event that does not fit the state (stale, repeated, unknown) changes nothing, and the
decision's reason says why; so a shell may send anything again. What an event causes, however far it
reaches (a delivery that closes a round, a result that commits one, starts an evaluation and opens the
next), is one decision, to be committed as one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coordinator.engine import assignments, evaluations, rounds, run, standings
from coordinator.engine import schedule as plan
from coordinator.engine.decision_builder import DecisionBuilder, deadlines
from coordinator.engine.run import new_run
from coordinator.engine.state import (
    ENGINE,
    Aggregated,
    AggregationSkipped,
    AlreadySo,
    AssignmentEvaluated,
    AssignmentFailed,
    AssignmentProgressed,
    Decision,
    Event,
    ModelFailed,
    ModelReady,
    OwnEvaluated,
    OwnPreparing,
    PauseRequested,
    PeerGone,
    PeerView,
    PrepareModel,
    Restored,
    ResumeRequested,
    RunBroken,
    RunState,
    RunStatus,
    RunWarned,
    StopRequested,
    Tick,
    UpdateAdmitted,
    UpdateRefused,
)

__all__ = ["decide", "new_run"]


def decide(
    state: RunState,
    event: Event,
    now: float,
    peers: Mapping[str, PeerView],
    schedule: plan.Schedule,
) -> Decision:
    """`peers` is everybody who is known; `schedule` is the run's, built once by `schedule.build`."""
    if event.run_id != state.run_id:
        return Decision(state=state, reason=f"the event is meant for run {event.run_id}", accepted=False)
    if state.status.ended:
        return Decision(state=state, reason=f"the run has ended: it is {state.status}", accepted=False)
    draft = DecisionBuilder(state, now, peers, actor=event.actor)
    apply = _EVENTS.get(type(event))
    if apply is None:
        what = f"a {type(event).__name__} means nothing to a run under way"
        return Decision(state=state, reason=what, accepted=False)
    ignored = apply(draft, event, peers)
    if ignored is not None:
        return Decision(state=state, reason=ignored, accepted=isinstance(ignored, AlreadySo))
    if isinstance(event, AssignmentProgressed):
        return draft.decision()  # tells of work under way and changes nothing that a schedule looks at
    draft.actor = ENGINE
    run.pause_exhausted(draft)
    assignments.expire_overdue(draft)
    evaluations.finish_complete(draft)
    waiting = ""
    if draft.state.status in (RunStatus.RUNNING, RunStatus.PAUSED):
        standings.take_back(draft)
        standings.wake(draft)
        waiting = _follow(draft, peers, schedule)
    if isinstance(event, Tick | Restored):
        # A clock that woke us too early, or a shell that has forgotten: say again what comes first.
        _wake_first(draft)
    return draft.decision(waiting or draft.state.reason)


def _model_failed(draft: DecisionBuilder, event: ModelFailed) -> str | None:
    if draft.state.status is not RunStatus.QUEUED:
        return f"the run is {draft.state.status} and has its initial model already"
    run.fail(draft, f"{event.what}: {event.error}", traceback=event.traceback)
    return None


def _aggregated(draft: DecisionBuilder, event: Aggregated) -> str | None:
    ignored = rounds.commit(draft, event)
    if ignored is None and evaluations.due(draft.state.spec, event.model.version):
        evaluations.start(draft, event.model)
    return ignored


def _restore(draft: DecisionBuilder) -> str | None:
    """Gives back the time away and orders again what was under way."""
    if draft.state.model is None:
        draft.order(PrepareModel(run_id=draft.state.run_id))
    for number in tuple(draft.state.rounds):
        rounds.restore(draft, number)
    assignments.restore(draft, draft.state.carried)
    for version in tuple(draft.state.evaluations):
        evaluations.restore(draft, version)
    for offer in assignments.live_offers(draft.state):
        draft.order(offer)
    return None


# What an event itself changes; each tells why the event is ignored, or None.
_Handler = Callable[[DecisionBuilder, Any, Mapping[str, PeerView]], str | None]
_EVENTS: dict[type[Event], _Handler] = {
    ModelReady: lambda draft, event, _: run.start(draft, event),
    ModelFailed: lambda draft, event, _: _model_failed(draft, event),
    Tick: lambda _draft, _event, _peers: None,
    Restored: lambda draft, _event, _peers: _restore(draft),
    AssignmentProgressed: lambda draft, event, _: assignments.progress(draft, event),
    AssignmentFailed: lambda draft, event, _: assignments.fail(draft, event),
    AssignmentEvaluated: lambda draft, event, _: assignments.evaluated(draft, event),
    UpdateAdmitted: assignments.deliver,
    UpdateRefused: lambda draft, event, _: assignments.refuse(draft, event),
    PeerGone: lambda draft, event, _: assignments.lose(draft, event.peer_id, event.reason),
    Aggregated: lambda draft, event, _: _aggregated(draft, event),
    AggregationSkipped: lambda draft, event, _: rounds.skip_aggregation(draft, event),
    OwnPreparing: lambda draft, event, _: evaluations.own_preparing(draft, event),
    OwnEvaluated: lambda draft, event, _: evaluations.own_evaluated(draft, event),
    RunWarned: lambda draft, event, _: run.warned(draft, event),
    PauseRequested: lambda draft, _event, _peers: run.pause(draft),
    ResumeRequested: lambda draft, _event, _peers: run.resume(draft),
    StopRequested: lambda draft, event, _: run.cancel(draft, event.reason),
    RunBroken: lambda draft, event, _: run.fail(draft, event.reason),
}


# -- what follows ----------------------------------------------------------------------------------------


def _skip(draft: DecisionBuilder, action: plan.SkipRound) -> None:
    round_ = draft.state.rounds[action.round]
    rounds.skip(draft, action.round, action.reason)
    run.pause_hopeless(draft, round_)


_ACTIONS: dict[type[Any], Callable[[DecisionBuilder, Any], None]] = {
    plan.OpenRound: rounds.open_round,
    plan.OfferWork: rounds.offer_work,
    plan.StartGrace: rounds.start_grace,
    plan.ExpireWork: rounds.expire_work,
    plan.CloseRound: rounds.close,
    plan.SkipRound: _skip,
}


def _follow(draft: DecisionBuilder, peers: Mapping[str, PeerView], schedule: plan.Schedule) -> str:
    """Does what the schedule says until it waits; returns what for."""
    # A round takes a few turns at most, and rounds that are skipped at once are bounded by the spec.
    for _ in range(8 * (draft.state.spec.round.skips_max + 1)):
        for action in schedule.next(draft.state, draft.now, peers):
            match action:
                case plan.Wait():
                    return _wait(draft, action)
                case plan.Finish():
                    return _finish(draft, action)
                case plan.OpenRound() if draft.state.status is RunStatus.PAUSED:
                    return draft.state.reason
                case _:
                    _ACTIONS[type(action)](draft, action)
                    run.pause_exhausted(draft)
    raise AssertionError(f"the schedule {draft.state.spec.schedule.name!r} does not come to rest")


def _wait(draft: DecisionBuilder, action: plan.Wait) -> str:
    if action.until is not None and action.until not in deadlines(draft.state):
        draft.wake(action.until)
    run.wait(draft, action.reason)
    return action.reason


def _finish(draft: DecisionBuilder, action: plan.Finish) -> str:
    """Only when the last version's evaluation has ended too."""
    if draft.state.evaluations:
        version = max(draft.state.evaluations)
        reason = f"every round is committed; the evaluation of version {version} is under way"
        run.wait(draft, reason)
        return reason
    run.finish(draft, action.reason)
    return ""


def _wake_first(draft: DecisionBuilder) -> None:
    # A deadline that is past and waits for somebody who prepares is no time to wake at.
    times = [at for at in deadlines(draft.state) if at > draft.now]
    if times:
        draft.wake(min(times))
