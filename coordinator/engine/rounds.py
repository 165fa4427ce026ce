"""The life of a round: planned, open, aggregating, and ended in one of three ways."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from coordinator.engine import assignments, folds, schedule, standings
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
    """Plans and opens a round with its cohort."""
    state = draft.state
    number = state.last_round + 1
    planned = RoundState(
        number=number,
        status=RoundStatus.PLANNED,
        reason=f"round {number} starts from version {action.base_version} with {_peers(action.cohort)}",
        base_version=action.base_version,
        cohort=tuple(sorted(action.cohort)),
        roles=dict(action.roles),
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
            "roles_json": json.dumps(dict(planned.roles)),
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
    """Offers a piece of work to each of these peers."""
    round_ = draft.state.rounds[action.round]
    deadline_at = round_.deadline_at
    if deadline_at is None:
        raise AssertionError(f"round {round_.number} has no deadline and offers no work")
    run_id = draft.state.run_id
    for peer_id in action.peer_ids:
        held = round_.assignments.newest(peer_id)
        if held is not None and (held.counts or not held.status.ended):
            raise AssertionError(f"a schedule asks {peer_id} a second time in round {round_.number}")
        attempt = 1 if held is None else held.attempt + 1
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
    """Starts the time that a round with its quorum waits for the rest."""
    _move(draft, "round.quorum", draft.state.rounds[action.round], action.reason, grace_until=action.until)


def expire_work(draft: DecisionBuilder, action: schedule.ExpireWork) -> None:
    """Ends assignments that are not delivered."""
    for assignment_id in action.assignment_ids:
        assignments.expire(draft, draft.state.rounds[action.round].assignments[assignment_id], action.reason)


def close(draft: DecisionBuilder, action: schedule.CloseRound) -> None:
    """Ends the collection of updates and orders their aggregation."""
    if any(r.status is RoundStatus.AGGREGATING for r in draft.state.rounds.values()):
        raise AssertionError("a schedule closed a round while another one is aggregating")
    fold = folds.fold_of(draft.state, action)
    round_ = replace(draft.state.rounds[action.round], fold=fold)
    _move(
        draft,
        "round.aggregating",
        round_,
        action.reason,
        status=RoundStatus.AGGREGATING,
        values={} if fold is None else {"fold_json": fold.to_json()},
        data={
            "updates": [a.assignment_id for a in folds.folded(draft.state, round_)],
            **({} if fold is None else {"work_goes_on": fold.work_goes_on}),
        },
    )
    aggregate(draft, round_.number)


def aggregate(draft: DecisionBuilder, number: int) -> None:
    """Orders the aggregation, for the first time or again."""
    newest = draft.state.model
    if newest is None:
        raise AssertionError(f"round {number} is open though there is no model")
    round_ = draft.state.rounds[number]
    updates, weights = folds.folded(draft.state, round_), None
    if round_.fold is not None and round_.fold.weights is not None:
        by_id = dict(zip(round_.fold.updates, round_.fold.weights, strict=True))
        weights = tuple(by_id[each.assignment_id] for each in updates)
    order = Aggregate(run_id=draft.state.run_id, round=number, base=newest, updates=updates, weights=weights)
    draft.order(order)


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
    updates = folds.folded(state, round_)
    _treat(draft, updates, event)
    standings.settle(draft, round_, updates)
    standings.pardon_late(draft)
    for cause, sentence in event.warnings:
        draft.warn(cause, sentence, round=round_.number)
    carried = folds.carry(draft, round_, updates)
    folds.expire_rest(draft, round_.number, f"round {round_.number} is committed")
    version = event.model.version
    reason = (
        f"round {round_.number} made version {version} from {_updates(len(updates))} "
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
            "updates": [a.assignment_id for a in updates],
            **({"carried": list(carried)} if round_.fold is not None else {}),
        },
    )
    draft.change(
        model=event.model,
        models={**draft.state.models, version: event.model},
        counted=folds.counted_after(draft.state, updates),
        carried=folds.carried_after(draft.state, carried, updates),
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
    dropped = () if round_.fold is None else folds.folded(draft.state, round_)
    carried = folds.carry(draft, round_, dropped)
    folds.expire_rest(draft, number, f"round {number} is skipped")
    data = {} if round_.fold is None else {"carried": list(carried)}
    _move(draft, "round.skipped", draft.state.rounds[number], reason, status=RoundStatus.SKIPPED, data=data)
    for assignment in dropped:
        if assignment.assignment_id in draft.state.carried:
            folds.write_carried(draft, assignment, {"carried": False})
    draft.change(carried=folds.carried_after(draft.state, carried, dropped))
    state = draft.state
    draft.change(skipped=state.skipped + 1, skipped_in_row=state.skipped_in_row + 1, reason=reason)
    standings.settle(draft, round_, round_.delivered)
    standings.settle_late(draft, round_, late)
    standings.rest(draft, round_)


def skip_aggregation(draft: DecisionBuilder, event: AggregationSkipped) -> str | None:
    """Skips a round that its rule refused; tells why that is ignored, or None."""
    round_ = draft.state.rounds.get(event.round)
    if round_ is None or round_.status is not RoundStatus.AGGREGATING:
        return f"round {event.round} is not aggregating: there is nothing to skip"
    skip(draft, event.round, f"round {event.round} was not aggregated: {event.reason_given}")
    return None


def fail(draft: DecisionBuilder, number: int, reason: str) -> None:
    """With its run."""
    folds.expire_rest(draft, number, reason)
    _move(draft, "round.failed", draft.state.rounds[number], reason, status=RoundStatus.FAILED)


def restore(draft: DecisionBuilder, number: int) -> None:
    """The time that the coordinator was away is given back; an aggregation is ordered again."""
    round_ = draft.state.rounds[number]
    table = draft.state.spec.round
    deadline_at = draft.now + table.deadline_seconds
    if round_.status is RoundStatus.AGGREGATING:
        if round_.takes_updates:
            assignments.restore(draft, round_.assignments)
            _move(draft, "", draft.state.rounds[number], round_.reason, deadline_at=deadline_at)
        aggregate(draft, number)
        return
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


def _treat(draft: DecisionBuilder, folded: Sequence[AssignmentState], event: Aggregated) -> None:
    treatments = {each.assignment_id: each for each in event.treatments}
    for update in folded:
        treatment = treatments.get(update.assignment_id)
        told = (
            {}
            if treatment is None
            else {
                "weight": treatment.weight,
                "score": treatment.score,
                "selected": treatment.selected,
                "treatment": treatment.sentence,
            }
        )
        reason = update.reason if treatment is None else treatment.sentence
        draft.record(
            "",
            "assignment",
            {"assignment_id": update.assignment_id},
            before=str(AssignmentStatus.DELIVERED),
            values={**told, "folded_in": event.round, "carried": False},
            reason=reason,
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
