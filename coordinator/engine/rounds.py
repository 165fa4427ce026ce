"""The life of a round: planned, open, aggregating, and ended in one of three ways."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from coordinator.engine import assignments, schedule, standings
from coordinator.engine.decision_builder import DecisionBuilder
from coordinator.engine.state import (
    Aggregate,
    Aggregated,
    AggregationSkipped,
    AssignmentState,
    AssignmentStatus,
    ModelVersion,
    RoundState,
    RoundStatus,
    RunState,
)


def open_round(draft: DecisionBuilder, action: schedule.OpenRound) -> None:
    state = draft.state
    number = state.last_round + 1
    planned = RoundState(
        number=number,
        status=RoundStatus.PLANNED,
        reason=f"round {number} starts from version {action.base_version} with {_peers(action.cohort)}",
        base_version=action.base_version,
        cohort=tuple(sorted(action.cohort)),
        needed=action.needed,
        quorum=action.quorum,
        planned_at=draft.now,
    )
    draft.change(last_round=number, reason=planned.reason, rest=None)
    draft.put_round(planned)
    draft.record(
        "round.planned",
        "round",
        _key(state, number),
        before=None,
        values={
            "state": str(planned.status),
            "reason": planned.reason,
            "base_version": planned.base_version,
            "base_digest": state.models[planned.base_version].digest,
            "cohort_json": json.dumps(planned.cohort),
            "needed": planned.needed,
            "quorum": planned.quorum,
            "planned_at": planned.planned_at,
        },
        reason=planned.reason,
        round=number,
        data={"base_version": planned.base_version, "cohort": list(planned.cohort)},
    )
    _move(
        draft,
        "round.opened",
        planned,
        action.reason,
        status=RoundStatus.OPEN,
        opened_at=draft.now,
        deadline_at=action.deadline_at,
    )
    if action.defenceless:
        draft.warn("faults.none", action.defenceless, round=number)


def offer_work(draft: DecisionBuilder, action: schedule.OfferWork) -> None:
    round_ = draft.state.rounds[action.round]
    deadline_at = round_.deadline_at
    if deadline_at is None:
        raise AssertionError(f"round {round_.number} has no deadline and offers no work")
    attempts: dict[str, int] = {}
    for held in round_.assignments.values():
        attempts[held.peer_id] = max(attempts.get(held.peer_id, 0), held.attempt)
    run_id = draft.state.run_id
    for peer_id in action.peer_ids:
        attempt = attempts.get(peer_id, 0) + 1
        again = f", attempt {attempt}" if attempt > 1 else ""
        assignment = AssignmentState(
            assignment_id=f"{run_id}.{round_.number}.{peer_id}.{attempt}",
            run_id=run_id,
            round=round_.number,
            peer_id=peer_id,
            work=action.work,
            attempt=attempt,
            status=AssignmentStatus.OFFERED,
            reason=f"{peer_id} is asked to {action.work.role} for round {round_.number}{again}: {action.reason}",
            offered_at=draft.now,
        )
        assignments.offer(draft, assignment, deadline_at)


def start_grace(draft: DecisionBuilder, action: schedule.StartGrace) -> None:
    _move(draft, "round.quorum", draft.state.rounds[action.round], action.reason, grace_until=action.until)


def expire_work(draft: DecisionBuilder, action: schedule.ExpireWork) -> None:
    for assignment_id in action.assignment_ids:
        assignments.expire(draft, draft.state.rounds[action.round].assignments[assignment_id], action.reason)


def close(draft: DecisionBuilder, action: schedule.CloseRound) -> None:
    if any(r.status is RoundStatus.AGGREGATING for r in draft.state.rounds.values()):
        raise AssertionError("a schedule closed a round while another one is aggregating")
    round_ = draft.state.rounds[action.round]
    data = {"updates": [a.assignment_id for a in round_.delivered]}
    _move(draft, "round.aggregating", round_, action.reason, status=RoundStatus.AGGREGATING, data=data)
    aggregate(draft, round_.number)


def aggregate(draft: DecisionBuilder, number: int) -> None:
    """Orders the aggregation, for the first time or again."""
    newest = draft.state.model
    if newest is None:
        raise AssertionError(f"round {number} is open though there is no model")
    updates = draft.state.rounds[number].delivered
    draft.order(Aggregate(run_id=draft.state.run_id, round=number, base=newest, updates=updates))


def commit(draft: DecisionBuilder, event: Aggregated) -> str | None:
    """The round's result is the run's next version; tells why the event is ignored, or None."""
    state = draft.state
    round_ = state.rounds.get(event.round)
    if round_ is None or round_.status is not RoundStatus.AGGREGATING:
        return f"round {event.round} is not aggregating: its result is not wanted (any more)"
    newest = state.model.version if state.model is not None else -1
    if (event.model.version, event.model.round) != (newest + 1, round_.number):
        return (
            f"the result of round {round_.number} is version {event.model.version} of round "
            f"{event.model.round}; version {newest + 1} of round {round_.number} comes next"
        )
    _treat(draft, round_, event)
    standings.settle(draft, round_)
    standings.pardon_late(draft)
    for cause, sentence in event.warnings:
        draft.warn(cause, sentence, round=round_.number)
    _expire_rest(draft, round_.number, f"round {round_.number} is committed")
    version = event.model.version
    reason = (
        f"round {round_.number} made version {version} from {_updates(len(round_.delivered))} "
        f"in {event.seconds:.2f} s" + (f": {event.how}" if event.how else "")
    )
    _record_model(draft, event.model, f"version {version} is the result of round {round_.number}")
    for name, digest in sorted(event.states.items()):
        draft.record(
            "",
            "optimizer_state",
            {"run_id": state.run_id, "version": version, "name": name},
            before="",
            values={"digest": digest},
            reason=reason,
        )
    _move(
        draft,
        "round.committed",
        draft.state.rounds[event.round],
        reason,
        status=RoundStatus.COMMITTED,
        values={"model_version": version, "aggregate_seconds": event.seconds},
        data={
            "version": version,
            "base_version": round_.base_version,
            "digest": event.model.digest,
            "updates": [a.assignment_id for a in round_.delivered],
        },
    )
    draft.change(
        model=event.model,
        models={**draft.state.models, version: event.model},
        counted={**draft.state.counted, **{a.peer_id: round_.number for a in round_.delivered}},
        committed=state.committed + 1,
        skipped_in_row=0,
        reason=reason,
    )
    return None


def create_model(draft: DecisionBuilder, model: ModelVersion) -> None:
    """The initial version, which no round has made."""
    _record_model(draft, model, "version 0 is the task's initial model")
    draft.change(model=model, models={model.version: model})


def skip(draft: DecisionBuilder, number: int, reason: str) -> None:
    """The model stays."""
    round_ = draft.state.rounds[number]
    late = [
        each
        for each in round_.assignments.values()
        if not each.status.ended and draft.now >= assignments.due(draft.state, each)
    ]
    _expire_rest(draft, number, f"round {number} is skipped")
    _move(draft, "round.skipped", draft.state.rounds[number], reason, status=RoundStatus.SKIPPED)
    state = draft.state
    draft.change(skipped=state.skipped + 1, skipped_in_row=state.skipped_in_row + 1, reason=reason)
    standings.settle(draft, round_)
    standings.settle_late(draft, round_, late)
    standings.rest(draft, round_)


def skip_aggregation(draft: DecisionBuilder, event: AggregationSkipped) -> str | None:
    round_ = draft.state.rounds.get(event.round)
    if round_ is None or round_.status is not RoundStatus.AGGREGATING:
        return f"round {event.round} is not aggregating: there is nothing to skip"
    skip(draft, event.round, f"round {event.round} was not aggregated: {event.reason_given}")
    return None


def fail(draft: DecisionBuilder, number: int, reason: str) -> None:
    """With its run."""
    _expire_rest(draft, number, reason)
    _move(draft, "round.failed", draft.state.rounds[number], reason, status=RoundStatus.FAILED)


def restore(draft: DecisionBuilder, number: int) -> None:
    """The time that the coordinator was away is given back; an aggregation is ordered again."""
    round_ = draft.state.rounds[number]
    if round_.status is RoundStatus.AGGREGATING:
        aggregate(draft, number)
        return
    table = draft.state.spec.round
    deadline_at = draft.now + table.deadline_seconds
    grace_until = round_.grace_until
    if grace_until is not None:
        grace_until = min(deadline_at, draft.now + table.grace_seconds)
    seconds = table.deadline_seconds
    reason = f"round {number} goes on after a restart of the coordinator: it has {seconds:g} s again"
    assignments.restore(draft, round_.assignments)
    round_ = draft.state.rounds[number]
    _move(draft, "round.restored", round_, reason, deadline_at=deadline_at, grace_until=grace_until)


# -- inside ----------------------------------------------------------------------------------------------


def _key(state: RunState, number: int) -> dict[str, Any]:
    return {"run_id": state.run_id, "number": number}


def _move(
    draft: DecisionBuilder,
    kind: str,
    round_: RoundState,
    reason: str,
    *,
    status: RoundStatus | None = None,
    values: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    **times: Any,
) -> None:
    """Into a status, or with new `times` (which fields and columns both have) in the one it is in."""
    status = status or round_.status
    draft.put_round(replace(round_, status=status, reason=reason, **times))
    row: dict[str, Any] = {"state": str(status), "reason": reason, **times, **(values or {})}
    if status.ended:
        row["ended_at"] = draft.now
    draft.record(
        kind,
        "round",
        _key(draft.state, round_.number),
        before=str(round_.status),
        values=row,
        reason=reason,
        round=round_.number,
        data={**times, **(data or {})},
    )


def _expire_rest(draft: DecisionBuilder, number: int, reason: str) -> None:
    """No work outlives its round."""
    for assignment in draft.state.rounds[number].assignments.values():
        if not assignment.status.ended:
            assignments.expire(draft, assignment, reason)


def _treat(draft: DecisionBuilder, round_: RoundState, event: Aggregated) -> None:
    updates = {a.assignment_id for a in round_.delivered}
    for treatment in event.treatments:
        if treatment.assignment_id not in updates:
            continue
        draft.record(
            "",
            "assignment",
            {"assignment_id": treatment.assignment_id},
            before=str(AssignmentStatus.DELIVERED),
            values={
                "weight": treatment.weight,
                "score": treatment.score,
                "selected": treatment.selected,
                "treatment": treatment.sentence,
            },
            reason=treatment.sentence,
        )


def _record_model(draft: DecisionBuilder, model: ModelVersion, reason: str) -> None:
    draft.record(
        "model.created",
        "model",
        {"run_id": draft.state.run_id, "version": model.version},
        before=None,
        values={
            "round": model.round,
            "digest": model.digest,
            "size_bytes": model.size_bytes,
            "layout_digest": model.layout_digest,
            "created_at": draft.now,
        },
        reason=reason,
        round=model.round,
        data={"version": model.version, "digest": model.digest},
    )


def _peers(cohort: Sequence[str]) -> str:
    return "1 peer" if len(cohort) == 1 else f"{len(cohort)} peers"


def _updates(count: int) -> str:
    return "1 update" if count == 1 else f"{count} updates"
