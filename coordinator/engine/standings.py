"""Where peers stand in a run: what went wrong at each last, and who is set aside for it.

A peer whose work fails by a fault of its own that lasts is *set aside*: no round and no evaluation asks it, and it
counts in no cohort, until its daemon starts anew (its `instance` is another then) or an admin resumes the run. It is
kept with the run, so that a restart of the coordinator changes nothing.

* What only that machine's owner, data and installation decide (`OWN_FAULTS`) sets aside at once; data that could not be
  read (`PASSING_FAULTS`) only if they cannot at once a second time, in the same round or where no attempts are left in
  the next one.
* What else its task raises does after `FAILURES_IN_ROW` rounds in a row that it was asked for, what admission refuses
  after `REFUSALS_IN_ROW`, with the same error id each time. A round counts only where at least as many others delivered
  as failed: where most fail it is the task, the spec or the model that all were given. So a liar, who can spoil the
  model for everybody, gets nobody set aside with it.
* Whose work is not done at the deadline is set aside after `LATENESS_IN_ROW` rounds in a row that were skipped for want
  of it and of which at least as many others delivered as were late. Who misses rounds that are committed costs nothing.
* A peer that is lost or killed and has attempts left has no fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from coordinator.engine.decision_builder import DecisionBuilder
from coordinator.engine.state import (
    AssignmentState,
    AssignmentStatus,
    PeerStanding,
    PeerStatus,
    PeerView,
    Rest,
    RoundState,
    RunState,
)
from muster.texts import one_line

# What a site finds when it loads its data and tries one batch, whatever others have made of the model.
TRIAL_FAULTS = frozenset(
    {
        "task.bad_examples",
        "task.bad_loss",
        "task.data_failed",
        "task.growing_model",
        "task.not_prepared",
        "task.nothing_to_train",
    }
)
OWN_FAULTS = TRIAL_FAULTS | frozenset(
    {
        "peer.task_not_allowed",
        "peer.unknown_role",
        "peer.bad_spec",
        "plugin.broken",
        "plugin.unknown",
        "task.failed_to_load",
        "task.malformed",
        "task.no_data",
        "task.not_a_task",
        "task.not_found",
        "task.not_map_style",
        "task.other_sources",
        "task.shadowed",
    }
)
PASSING_FAULTS = frozenset({"task.data_failed"})  # of these, what a disk or network may do once
PASSING_IN_ROW = 2
LATE = "assignment.late"  # not done at the deadline
_OUT_OF_TIME = (LATE, "worker.timeout")  # whether its site or the coordinator was first to give the work up
FAILURES_IN_ROW = 2
LATENESS_IN_ROW = 2
REFUSALS_IN_ROW = 3
CAUSE_CHARS_MAX = 500
CAUSES_TOLD = 3
NAMES_TOLD = 3
REST_SECONDS_MIN = 1.0
REST_SECONDS_MAX = 60.0


def is_aside(state: RunState, peer_id: str) -> bool:
    """Whether the peer is set aside in this run."""
    standing = state.standings.get(peer_id)
    return standing is not None and standing.aside


def eligible(state: RunState, peers: Mapping[str, PeerView]) -> list[str]:
    """Who may be asked now: there, active, and not set aside; sorted."""
    return sorted(
        peer.peer_id for peer in peers.values() if is_present(peer) and not is_aside(state, peer.peer_id)
    )


def is_present(peer: PeerView) -> bool:
    """Whether the peer can be asked now."""
    return peer.connected and peer.status is PeerStatus.ACTIVE


def format_set_aside(state: RunState) -> str:
    """Who is set aside and why, equal causes once: "a and b are set aside: this site has no examples"; ""."""
    return "; ".join(
        f"{who} {'is' if count == 1 else 'are'} set aside: {cause}"
        for who, count, cause in _by_cause(state, lambda standing: standing.aside)
    )


def format_causes(state: RunState) -> str:
    """What has gone wrong at whom and was not followed by an update: "a and b: no such file"; ""."""
    found = _by_cause(state, lambda standing: standing.aside or standing.round > 0)
    return "; ".join(f"{who}: {cause}" for who, _, cause in found)


def unclear(state: RunState, round_: RoundState) -> bool:
    """Whether more failed than delivered so far by what may be everybody's fault: the rest will tell."""
    failed = [s for s in _failed(state, round_) if s.error_id not in OWN_FAULTS]
    return len(failed) > round_.assignments.delivered_count


def hopeless(state: RunState, round_: RoundState) -> bool:
    """Whether the task did not pass its trial at a single site of the round: another round would end the same."""
    failed = _failed(state, round_)
    return len(failed) == len(round_.cohort) > 0 and all(s.error_id in TRIAL_FAULTS for s in failed)


# -- what happens to a peer ------------------------------------------------------------------------------


def note(draft: DecisionBuilder, assignment: AssignmentState, error_id: str, cause: str) -> None:
    """A training assignment has failed, or its update was refused."""
    if assignment.evaluation:
        return
    held = draft.state.standings.get(assignment.peer_id)
    if held is not None and held.aside:
        return
    standing = _noted(draft, assignment, error_id, cause)
    if error_id not in OWN_FAULTS:
        _put(draft, standing)
        return
    counted = replace(standing, in_row=standing.in_row + 1)
    if error_id not in PASSING_FAULTS or counted.in_row >= PASSING_IN_ROW:
        set_aside(draft, counted)
    else:
        _put(draft, counted)


def asked_once_more(state: RunState, assignment: AssignmentState, error_id: str) -> bool:
    """Whether what has failed may have passed: the same site is asked again in the round."""
    held = state.standings.get(assignment.peer_id)
    begun = held.in_row if held is not None and held.error_id == error_id else 0
    return error_id in PASSING_FAULTS and begun + 1 < PASSING_IN_ROW


def set_aside(draft: DecisionBuilder, standing: PeerStanding) -> None:
    """Sets a peer aside in this run, with the reason."""
    reason = (
        f"{standing.peer_id} is set aside and asked no more: {standing.cause}; once that is mended, "
        f"start this peer anew, or: muster run resume {draft.state.run_id}"
    )
    aside = replace(standing, aside=True, times=standing.times + 1)
    _put(draft, aside, "standing.set_aside", reason)
    draft.warn(f"set_aside:{standing.peer_id}", reason, round=standing.round, peer_id=standing.peer_id)


def settle(draft: DecisionBuilder, round_: RoundState, updates: Sequence[AssignmentState]) -> None:
    """At a round's end: whose updates came is well again, and whose failure was the last of a row is set aside."""
    for assignment in updates:
        _forget(draft, assignment.peer_id)
    counts = not unclear(draft.state, round_)
    for standing in _failed(draft.state, round_):
        if standing.aside or standing.error_id in PASSING_FAULTS or not counts:
            continue  # that of those that pass has counted when it came
        counted = replace(standing, in_row=standing.in_row + 1)
        refused = standing.error_id.startswith("update.")
        if counted.in_row >= (REFUSALS_IN_ROW if refused else FAILURES_IN_ROW):
            set_aside(draft, counted)
        else:
            _put(draft, counted)


def settle_late(draft: DecisionBuilder, round_: RoundState, late: Sequence[AssignmentState]) -> None:
    """A round was skipped at its deadline, at which these of its training assignments were not done."""
    delivered = len(round_.delivered)
    # With its quorum a round is skipped for want of its trusted peer alone, which no other can stand in for.
    if delivered >= round_.quorum or len(late) > delivered:
        return
    seconds = draft.state.spec.round.deadline_seconds
    cause = (
        f"not done within round.deadline_seconds, {seconds:g} s, in {LATENESS_IN_ROW} rounds in a row that were "
        "skipped for want of it: give this peer more time (less other work, a faster device), or the next run a "
        "longer deadline"
    )
    for assignment in late:
        if is_aside(draft.state, assignment.peer_id):
            continue
        standing = _noted(draft, assignment, LATE, f"not done within round.deadline_seconds, {seconds:g} s")
        counted = replace(standing, in_row=standing.in_row + 1)
        trusted = assignment.peer_id == draft.state.spec.aggregation.trusted_peer
        if counted.in_row >= LATENESS_IN_ROW and not trusted:
            set_aside(draft, replace(counted, cause=cause))
        else:
            _put(draft, counted)


def pardon_late(draft: DecisionBuilder) -> None:
    """A round is committed: it has done without those who were late, and a row of skipped ones ends with it."""
    for standing in tuple(draft.state.standings.values()):
        if standing.error_id == LATE:
            _forget(draft, standing.peer_id)


def take_back(draft: DecisionBuilder) -> None:
    """Those whose daemon has started anew since they were set aside are asked again."""
    for standing in tuple(draft.state.standings.values()):
        peer = draft.peers.get(standing.peer_id)
        if standing.aside and peer is not None and peer.instance not in ("", standing.instance):
            _release(draft, standing, f"{standing.peer_id} has started anew and is asked again")
            draft.change(rest=None)


def release_all(draft: DecisionBuilder, why: str) -> bool:
    """Forgets what went wrong; whether anybody was set aside."""
    found = False
    for standing in tuple(draft.state.standings.values()):
        if standing.aside:
            found = True
            _release(draft, replace(standing, times=0), f"{standing.peer_id} is asked again: {why}")
        elif standing.round or standing.times:
            _put(draft, replace(standing, in_row=0, round=0, times=0))
    return found


# -- the pause after a skipped round ---------------------------------------------------------------------


def rest(draft: DecisionBuilder, round_: RoundState) -> None:
    """Rounds that are skipped follow each other ever more slowly: 1, 2, 4, ... 60 s from opening to opening.

    Where somebody was set aside for the first time the cause is gone with it, and where the sampler drew nobody there
    is none: no pause then.
    """
    state = draft.state
    first = [s for s in state.standings.values() if s.aside and s.times == 1 and s.round == round_.number]
    if first or not round_.assignments:
        return
    until = (round_.opened_at or round_.planned_at) + min(
        REST_SECONDS_MAX, REST_SECONDS_MIN * 2.0 ** min(state.skipped_in_row - 1, 16)
    )
    if until > draft.now:
        draft.change(rest=Rest(until=until, present=len(eligible(state, draft.peers))))


def wake(draft: DecisionBuilder) -> None:
    """The pause is over when its time is, or when more peers are there than at its begin."""
    held = draft.state.rest
    if held is None:
        return
    over = draft.now >= held.until or held.until - draft.now > REST_SECONDS_MAX  # the clock was set back
    if over or len(eligible(draft.state, draft.peers)) > held.present:
        draft.change(rest=None)


# -- inside ----------------------------------------------------------------------------------------------


def _noted(draft: DecisionBuilder, assignment: AssignmentState, error_id: str, cause: str) -> PeerStanding:
    """What goes on a row of the same error, if there is one, and counts nothing yet."""
    held = draft.state.standings.get(assignment.peer_id)
    peer = draft.peers.get(assignment.peer_id)
    again = held is not None and (
        held.error_id == error_id or (held.error_id in _OUT_OF_TIME and error_id in _OUT_OF_TIME)
    )
    return PeerStanding(
        peer_id=assignment.peer_id,
        error_id=error_id,
        cause=one_line(cause, CAUSE_CHARS_MAX),
        round=assignment.round,
        in_row=held.in_row if held is not None and again else 0,
        instance=peer.instance if peer is not None else "",
        times=held.times if held is not None else 0,
    )


def _forget(draft: DecisionBuilder, peer_id: str) -> None:
    held = draft.state.standings.get(peer_id)
    if held is not None and held.round and not held.aside:
        _put(draft, replace(held, in_row=0, round=0))


def _failed(state: RunState, round_: RoundState) -> list[PeerStanding]:
    """Of the round's cohort: those that failed in it for good."""
    found: list[PeerStanding] = []
    for assignment in round_.assignments.failed:
        standing = state.standings.get(assignment.peer_id)
        if standing is None or standing.round != round_.number:
            continue
        if round_.assignments.newest(assignment.peer_id) is not assignment:
            continue
        last = not assignment.retry or assignment.attempt >= state.spec.round.attempts_max
        if assignment.status in (AssignmentStatus.REJECTED, AssignmentStatus.LOST) and last:
            found.append(standing)
    return found


def _by_cause(state: RunState, which: Callable[[PeerStanding], bool]) -> list[tuple[str, int, str]]:
    """Names, how many they are, and the cause that they share; the most common first."""
    groups: dict[str, list[str]] = {}
    for peer_id in sorted(state.standings):
        if which(state.standings[peer_id]):
            groups.setdefault(state.standings[peer_id].cause, []).append(peer_id)
    largest = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [(_names(names), len(names), cause) for cause, names in largest[:CAUSES_TOLD]]


def _names(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c", "a, b, c and 4 more"."""
    more = len(names) - NAMES_TOLD
    parts = [*names[:NAMES_TOLD], *([f"{more} more"] if more > 0 else [])]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _release(draft: DecisionBuilder, standing: PeerStanding, reason: str) -> None:
    _put(draft, replace(standing, aside=False, in_row=0, round=0), "standing.taken_back", reason)


def _put(draft: DecisionBuilder, standing: PeerStanding, kind: str = "", reason: str = "") -> None:
    state = draft.state
    draft.change(standings={**state.standings, standing.peer_id: standing})
    draft.record(
        kind,
        "standing",
        {"run_id": state.run_id, "peer_id": standing.peer_id},
        before="",
        values={
            "error_id": standing.error_id,
            "cause": standing.cause,
            "round": standing.round,
            "in_row": standing.in_row,
            "aside": standing.aside,
            "instance": standing.instance,
            "times": standing.times,
        },
        reason=reason,
        round=state.last_round,
        peer_id=standing.peer_id,
        data={"error_id": standing.error_id, "cause": standing.cause},
    )
