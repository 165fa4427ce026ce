"""A decision in the making: the state so far, and what was recorded and ordered on the way to it.

Local to one call of `decide`; nothing outside sees it. Every change of a row goes through `record` or
`record_run`, so that the rows always add up to the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coordinator.engine import preparing
from coordinator.engine.state import (
    ENGINE,
    AssignmentState,
    Decision,
    Effect,
    EvaluationState,
    PeerView,
    RoundState,
    RoundStatus,
    RunState,
    Transition,
    WakeAt,
    WarningState,
    versions_in_use,
)
from muster.texts import one_line

WARNINGS_MAX = 100  # causes of a run; what comes after them is counted under one cause
CAUSE_CHARACTERS_MAX = 200
MORE_WARNINGS = "warnings.more"


def deadlines(state: RunState) -> frozenset[float]:
    """The times at which something of this run is due, whatever happens until then."""
    times = preparing.times(state)
    for round_ in state.rounds.values():
        if round_.status is RoundStatus.OPEN:
            times.update(at for at in (round_.grace_until,) if at is not None)
    if state.rest is not None:
        times.add(state.rest.until)
    if state.carried.due_first is not None:
        times.add(state.carried.due_first[0])
    return frozenset(times)


def last_line(text: str) -> str:
    """The line of a traceback that says what went wrong."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _run_row(state: RunState) -> dict[str, Any]:
    """The columns of the run's row that follow from the state; the others never change or are times."""
    return {
        "state": str(state.status),
        "reason": state.reason,
        "last_round": state.last_round,
        "committed": state.committed,
        "skipped": state.skipped,
        "skipped_in_row": state.skipped_in_row,
        "rest_until": state.rest.until if state.rest is not None else None,
        "rest_present": state.rest.present if state.rest is not None else 0,
        "model_version": state.model.version if state.model is not None else None,
    }


class DecisionBuilder:
    """`actor` is who causes what is recorded from then on."""

    def __init__(
        self,
        state: RunState,
        now: float,
        peers: Mapping[str, PeerView] | None = None,
        *,
        actor: str = ENGINE,
    ) -> None:
        self.actor = actor
        self.state = state
        self.now = now
        self.peers: Mapping[str, PeerView] = peers or {}
        self.reason = ""  # of the newest transition
        self._before = state
        self._row = _run_row(state)  # as it is written so far
        self._transitions: list[Transition] = []
        self._effects: list[Effect] = []
        self._wakes: set[float] = set()

    # -- the state ---------------------------------------------------------------------------------------

    def change(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    def put_round(self, round_: RoundState) -> None:
        """An ended round leaves the state; its rows stay."""
        rounds = {number: r for number, r in self.state.rounds.items() if number != round_.number}
        if not round_.status.ended:
            rounds[round_.number] = round_
        self.change(rounds=dict(sorted(rounds.items())))

    def put_evaluation(self, evaluation: EvaluationState, *, ended: bool = False) -> None:
        rest = {v: e for v, e in self.state.evaluations.items() if v != evaluation.version}
        if not ended:
            rest[evaluation.version] = evaluation
        self.change(evaluations=dict(sorted(rest.items())))

    def put_assignment(self, assignment: AssignmentState) -> None:
        """Where it lives: with its evaluation, with its round, or with what has outlived its round, of which one
        that has ended without an update is let go."""
        if assignment.evaluation:
            evaluation = self.state.evaluations[assignment.work.base]
            self.put_evaluation(replace(evaluation, assignments=evaluation.assignments.put(assignment)))
        elif (round_ := self.state.rounds.get(assignment.round)) is not None:
            self.put_round(replace(round_, assignments=round_.assignments.put(assignment)))
        elif assignment.status.ended and not assignment.counts:
            self.change(carried=self.state.carried.without(assignment.assignment_id))
        else:
            self.change(carried=self.state.carried.put(assignment))

    # -- what is recorded --------------------------------------------------------------------------------

    def record(
        self,
        kind: str,
        entity: str,
        key: Mapping[str, Any],
        *,
        before: str | None,
        values: Mapping[str, Any],
        reason: str,
        round: int = 0,
        assignment: AssignmentState | None = None,
        peer_id: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        told = dict(data or {})
        if "state" in values:
            told["state"] = values["state"]
        self._transitions.append(
            Transition(
                kind=kind,
                entity=entity,
                key=key,
                before=before,
                values=values,
                reason=reason,
                at=self.now,
                run_id=self.state.run_id,
                round=assignment.round if assignment is not None else round,
                assignment_id=assignment.assignment_id if assignment is not None else "",
                peer_id=assignment.peer_id if assignment is not None else peer_id,
                data=told,
                actor=self.actor,
            )
        )
        if kind:
            self.reason = reason

    def record_run(
        self,
        kind: str,
        reason: str,
        *,
        insert: Mapping[str, Any] | None = None,
        values: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes what changed of the run's row, and `values`. `insert`: the row is new and has these
        columns."""
        row = _run_row(self.state)
        changed = row if insert is not None else {k: v for k, v in row.items() if v != self._row[k]}
        self.record(
            kind,
            "run",
            {"run_id": self.state.run_id},
            before=None if insert is not None else self._row["state"],
            values={**changed, **(insert or {}), **(values or {})},
            reason=reason,
            data=data,
        )
        self._row = row

    def warn(
        self, cause: str, reason: str, *, round: int = 0, peer_id: str = "", traceback: str = ""
    ) -> None:
        """Records what is no failure of the run and must not be silent.

        `cause` is a short stable key ("evaluate.failed:site-0", with the peer where it is one peer's matter): the
        first time makes an event `run.warned`, every other one only counts, keeps its round and the newest
        sentence. At most `WARNINGS_MAX` causes are told apart.
        """
        cause = cause[:CAUSE_CHARACTERS_MAX]
        known = self.state.warnings.get(cause)
        if known is None and len(self.state.warnings) >= WARNINGS_MAX:
            cause = MORE_WARNINGS
            reason = (
                f"more than {WARNINGS_MAX} kinds of warning: others are only counted, the newest: {reason}"
            )
            known = self.state.warnings.get(cause)
        warning = WarningState(
            cause=cause,
            reason=one_line(reason),
            peer_id=peer_id,
            times=known.times + 1 if known is not None else 1,
            first_round=known.first_round if known is not None else round,
            last_round=round,
            last_at=self.now,
        )
        self.change(warnings={**self.state.warnings, cause: warning})
        values = {name: value for name, value in vars(warning).items() if name != "cause"}
        self._transitions.append(
            Transition(
                kind="run.warned" if known is None else "",
                entity="warning",
                key={"run_id": self.state.run_id, "cause": cause},
                before=None if known is None else "",
                values=values,
                reason=warning.reason,
                at=self.now,
                run_id=self.state.run_id,
                round=round,
                peer_id=peer_id,
                data={"cause": cause, **({"traceback": traceback} if traceback else {})},
                actor=self.actor,
            )
        )

    def order(self, effect: Effect) -> None:
        self._effects.append(effect)

    def wake(self, at: float) -> None:
        self._wakes.add(at)

    # -- the end -----------------------------------------------------------------------------------------

    def decision(self, reason: str = "") -> Decision:
        """`reason` stands where nothing was recorded."""
        self._keep_models()
        if _run_row(self.state) != self._row:
            self.record_run("", self.state.reason)
        if not self.state.status.ended:
            # Each deadline is announced once, when it is set.
            self._wakes |= deadlines(self.state) - deadlines(self._before)
            self._effects += [WakeAt(run_id=self.state.run_id, at=at) for at in sorted(self._wakes)]
        return Decision(
            state=self.state,
            transitions=tuple(self._transitions),
            effects=tuple(self._effects),
            reason=self.reason or reason,
        )

    def _keep_models(self) -> None:
        """Lets go of versions that nothing needs any more, which takes a look at all that is live."""
        state = self.state
        if state.model is None or tuple(state.models) == (state.model.version,):
            return
        used = versions_in_use(state.model, state.rounds, state.evaluations, state.carried)
        self.change(models={version: state.models[version] for version in sorted(used)})
