"""The synchronous schedule: one round after the other, with cohort, quorum, grace time and one deadline.

A round opens when enough peers are there for the spec and for the rule; who is set aside is there for
`peers_min`, and for nothing else. It closes

* as soon as the `needed` updates are delivered (over-selection asks more peers, and the first to deliver
  count);
* when its grace time after the quorum is over, or nobody else can deliver any more;
* at its deadline with what it has, if that is a quorum.

It is skipped when its quorum is not there at the deadline or can no longer be reached; then the next one
waits a little (`standings.rest`). Below its quorum it waits for peers that still load their data
(`preparing`). The peer that the rule trusts, if it trusts one, is in every cohort; a
round does not close before it has delivered, and is skipped without it. A peer whose attempt failed or was
lost is asked again while attempts are left and it is there; the attempt changes nothing in what it computes.

Of four and fewer peers a quorum that the spec leaves open does without one. That is meant for one that has
failed or is away: while the last one prepares or works it is waited for, as it would be if all were the quorum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import ClassVar

from coordinator.engine import preparing, sampling, standings
from coordinator.engine.sampling import Draw
from coordinator.engine.schedule import (
    Action,
    CloseRound,
    ExpireWork,
    Finish,
    OfferWork,
    OpenRound,
    Refuse,
    SkipRound,
    StartGrace,
    Wait,
    defenceless,
)
from coordinator.engine.state import (
    AssignmentState,
    AssignmentStatus,
    PeerStatus,
    PeerView,
    RoundState,
    RoundStatus,
    RunState,
)
from coordinator.engine.works import Works
from muster.seeds import derive_random
from muster.spec.model import RunSpec, share
from muster.work import TRAIN, Work

CAUSES_TOLD = 3
_NEVER_AGAIN = (PeerStatus.DRAINING, PeerStatus.QUARANTINED, PeerStatus.REVOKED)


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """Where a round's cohort stands."""

    delivered: int
    live: int
    ready: tuple[str, ...]  # peers that may be asked (again) now
    away: tuple[str, ...]  # peers that may be asked again once they are back
    preparing: int  # of the live ones
    prepared_by: float  # until when the first of those may prepare
    trusted: bool | None  # whether the trusted peer's update is there; None: it cannot come any more

    @property
    def outstanding(self) -> int:
        return self.live + len(self.ready) + len(self.away)


class Synchronous:
    """One round after the other; its settings are the `[round]` and `[sampling]` tables, and it has no options."""

    several_bases: ClassVar[bool] = False

    def __init__(self, spec: RunSpec, *, refuse: Refuse) -> None:
        self._spec = spec
        self._refuse = refuse
        self._sampler = sampling.build(spec.sampling)
        self._trusted = spec.aggregation.trusted_peer

    def next(self, state: RunState, now: float, peers: Mapping[str, PeerView]) -> Sequence[Action]:
        for round_ in state.rounds.values():
            if round_.status is RoundStatus.AGGREGATING:
                return (Wait(until=None, reason=f"round {round_.number} is being aggregated"),)
            return self._drive(state, round_, now, peers)
        if state.committed >= self._spec.rounds:
            return (Finish(reason=f"all {self._spec.rounds} rounds are committed"),)
        return (self._open(state, now, peers),)

    # -- opening -----------------------------------------------------------------------------------------

    def _open(self, state: RunState, now: float, peers: Mapping[str, PeerView]) -> Action:
        if state.model is None:
            raise AssertionError("a schedule is asked before there is a model")
        number = state.last_round + 1
        present = standings.eligible(state, peers)
        waiting = self._waits_for(number, present, sum(map(standings.is_present, peers.values())))
        if waiting is not None:
            aside = standings.format_set_aside(state)
            return Wait(until=None, reason=waiting + (f"; {aside}" if aside else ""))
        if state.rest is not None:
            count = state.skipped_in_row
            skips = f"{count} skipped rounds in a row" if count > 1 else "a skipped round"
            return Wait(until=state.rest.until, reason=f"round {number} waits for a moment after {skips}")
        draw = self._draw(sampling.views(state, peers, present), number)
        told = self._spec.format_faults(len(draw.cohort))
        quorum, bound = self._quorum(draw.needed, len(draw.cohort))
        return OpenRound(
            cohort=draw.cohort,
            roles={peer: role for peer, role in draw.roles.items() if role != TRAIN},
            needed=draw.needed,
            quorum=quorum,
            base_version=state.model.version,
            deadline_at=now + self._spec.round.deadline_seconds,
            reason=(
                f"round {number} is open: {len(draw.cohort)} of {len(present)} peers are asked, "
                f"{draw.needed} updates are wanted, {quorum} are a quorum{bound}"
                + (f"; {told}" if told else "")
            ),
            defenceless=defenceless(self._spec, len(draw.cohort)),
        )

    def _waits_for(self, number: int, present: Sequence[str], here: int) -> str | None:
        """Why a round with these peers cannot open yet; `here` are those with them that are set aside."""
        wanted = self._spec.round.peers_min
        if here < wanted:
            return f"round {number} waits for peers: {here} of {wanted} are active and connected"
        if not present:
            return f"round {number} waits for peers: nobody is left of {here} that are active and connected"
        if self._trusted is not None and self._trusted not in present:
            return f"round {number} waits for its trusted peer {self._trusted!r}"
        refusal = self._refuse(*self._expected(len(present)))
        if refusal is not None:
            some = f"{len(present)} are active and connected"
            return f"round {number} waits for more peers, {some}: {refusal}"
        return None

    def _expected(self, present: int) -> tuple[int, int]:
        """How many updates a draw from so many peers wants and how many it asks, where that is not random."""
        trusted = self._trusted is not None
        needed = self._sampler.needed(present - trusted)
        asked = min(present - trusted, share(self._spec.sampling.over_select, needed))
        return needed + trusted, max(needed, asked) + trusted

    def _draw(self, present: Sequence[PeerView], number: int) -> Draw:
        """The cohort; with the trusted peer, which is present, in it beside those that are drawn."""
        random = derive_random(self._spec.seed, "sample", number)
        trusted = self._trusted
        if trusted is None:
            return self._sampler.sample(present, random)
        draw = self._sampler.sample([peer for peer in present if peer.peer_id != trusted], random)
        return replace(draw, cohort=tuple(sorted((*draw.cohort, trusted))), needed=draw.needed + 1)

    def _quorum(self, needed: int, cohort: int) -> tuple[int, str]:
        """What the spec says of the updates wanted, and no fewer than the rule can aggregate; why, if it is more."""
        wanted = self._spec.round.quorum_of(needed, cohort)
        if not cohort or wanted >= needed:
            return wanted, ""
        quorum = next((n for n in range(wanted, needed) if self._refuse(n, cohort) is None), needed)
        return quorum, "" if quorum == wanted else f" ({self._refuse(quorum - 1, cohort)})"

    # -- driving -----------------------------------------------------------------------------------------

    def _drive(
        self, state: RunState, round_: RoundState, now: float, peers: Mapping[str, PeerView]
    ) -> Sequence[Action]:
        number = round_.number
        refusal = (
            self._refuse(round_.needed, len(round_.cohort)) if round_.cohort else "the sampler drew nobody"
        )
        if refusal is not None:  # the luck of a draw whose size is random
            return (SkipRound(round=number, reason=f"round {number} has too small a cohort: {refusal}"),)
        overdue = self._overdue(round_, now)
        if overdue is not None:
            return (overdue,)
        standing = self._standing(state, round_, peers)
        unclear = bool(standing.live or standing.ready) and standings.unclear(state, round_)
        have = f"{standing.delivered} of {round_.needed} updates are delivered, {round_.quorum} are a quorum"
        enough = standing.delivered >= round_.quorum and standing.trusted is True
        reachable = standing.delivered + standing.outstanding >= round_.quorum
        # For those who prepare it waits below its quorum; and of a few peers also above, where it has the patience.
        patient = not enough or self._patient(round_, standing)
        waits = standing.preparing > 0 and reachable and patient
        due = math.inf if waits else preparing.round_due(round_, self._spec.round)
        missing = self._trusted_missing(round_, standing, is_due=now >= due)
        if missing is not None:
            return (SkipRound(round=number, reason=f"{missing}: {have}{_causes(round_)}"),)
        if enough:
            closing = self._closing(round_, standing, now, due)
            if closing is not None:
                return _close(round_, standing, f"round {number} closes {closing}: {have}")
        elif now >= due:
            reason = f"round {number} is below its quorum at its deadline: {have}"
            reason += self._bound(standing.delivered, round_) + _causes(round_)
            return (SkipRound(round=number, reason=reason),)
        elif not reachable and not unclear:
            can = standing.outstanding
            reason = f"round {number} cannot reach its quorum any more: {have}, {can} can still come"
            reason += self._bound(standing.delivered + can, round_) + _causes(round_)
            return (SkipRound(round=number, reason=reason),)
        if enough and round_.grace_until is None and not self._patient(round_, standing):
            until = min(now + self._spec.round.grace_seconds, due)
            seconds = until - now
            reason = f"round {number} has its quorum and waits {seconds:g} s for the rest: {have}"
            return (StartGrace(round=number, until=until, reason=reason),)
        if standing.ready:
            again = (
                "the round is open" if not round_.assignments else "the peer is there and has attempts left"
            )
            return _offers(round_, standing.ready, again)
        until = min(due, standing.prepared_by) if round_.grace_until is None else round_.grace_until
        if standing.delivered >= round_.quorum and not enough:
            have += f", and the trusted peer {self._trusted!r} is waited for"
        elif unclear:
            have += ", and the rest will tell whether all fail or some"
        if waits:
            have += f", and {_peers_prepare(standing.preparing)}"
        return (Wait(until=until, reason=f"round {number} is open: {have}"),)

    def _overdue(self, round_: RoundState, now: float) -> ExpireWork | None:
        """Ends the work of those who have not prepared in their time."""
        table, works = self._spec.round, round_.assignments
        began = takewhile(lambda since: now >= since[0] + table.prepare_seconds, works.preparing)
        late = [works[assignment_id] for _, assignment_id in began]
        if not late:
            return None
        who = ", ".join(sorted(each.peer_id for each in late))
        reason = (
            f"{who} had not prepared (loaded the data) for round {round_.number} within "
            f"round.prepare_seconds, {table.prepare_seconds:g} s"
        )
        return ExpireWork(
            round=round_.number, assignment_ids=tuple(each.assignment_id for each in late), reason=reason
        )

    def _trusted_missing(self, round_: RoundState, standing: _Standing, *, is_due: bool) -> str | None:
        """Why the round ends without the trusted peer, be there as many updates of others as there may."""
        whose = f"the update of its trusted peer {self._trusted!r}"
        if standing.trusted is None:
            return f"round {round_.number} cannot have {whose} any more"
        if standing.trusted is False and is_due:
            return f"round {round_.number} is without {whose} at its deadline"
        return None

    def _bound(self, count: int, round_: RoundState) -> str:
        """What the rule says of so many updates, where it is the rule that wants more."""
        refusal = self._refuse(count, len(round_.cohort)) if count else None
        return f"; {refusal}" if refusal is not None else ""

    def _closing(self, round_: RoundState, standing: _Standing, now: float, due: float) -> str | None:
        """Why a round with its quorum closes now; None if it waits for more."""
        if standing.delivered >= round_.needed:
            return "with all the updates it wants"
        if standing.outstanding == 0:
            return "since nobody else can deliver"
        if now >= due:
            return "at its deadline"
        if self._patient(round_, standing):
            return None
        if self._spec.round.grace_seconds == 0:
            return "with its quorum"
        if round_.grace_until is not None and now >= round_.grace_until:
            return "after its grace time"
        return None

    def _patient(self, round_: RoundState, standing: _Standing) -> bool:
        """Whether those at work are waited for beyond the grace time; not once it has begun."""
        few = standing.delivered < self._spec.round.patient_quorum(round_.needed)
        return few and round_.grace_until is None and bool(standing.live or standing.ready)

    def _standing(self, state: RunState, round_: RoundState, peers: Mapping[str, PeerView]) -> _Standing:
        works = round_.assignments
        ready: list[str] = []
        away: list[str] = []
        for peer_id in works.idle:
            if self._may_ask(works.newest(peer_id)) and not standings.is_aside(state, peer_id):
                peer = peers.get(peer_id)
                if peer is not None and peer.status not in _NEVER_AGAIN:
                    (ready if standings.is_present(peer) else away).append(peer_id)
        limit = preparing.first_limit(works, self._spec.round)
        return _Standing(
            delivered=works.delivered_count,
            live=works.live_count,
            ready=tuple(ready),
            away=tuple(away),
            preparing=works.preparing_count,
            prepared_by=math.inf if limit is None else limit,
            trusted=self._trusted_stands(works, (*ready, *away)),
        )

    def _trusted_stands(self, works: Works, askable: Sequence[str]) -> bool | None:
        if self._trusted is None:
            return True
        assignment = works.newest(self._trusted)
        if assignment is not None and not assignment.status.ended:
            return False
        if assignment is not None and assignment.status is AssignmentStatus.DELIVERED:
            return True
        return False if self._trusted in askable else None

    def _may_ask(self, newest: AssignmentState | None) -> bool:
        return newest is None or (newest.retry and newest.attempt < self._spec.round.attempts_max)


def _close(round_: RoundState, standing: _Standing, reason: str) -> Sequence[Action]:
    closing = CloseRound(round=round_.number, reason=reason)
    if not standing.live:
        return (closing,)
    rest = ExpireWork(round=round_.number, assignment_ids=tuple(round_.assignments.live), reason=reason)
    return (rest, closing)


def _offers(round_: RoundState, peer_ids: Sequence[str], reason: str) -> Sequence[Action]:
    """Work for these peers, each in the role that it was drawn for."""
    asked: dict[str, list[str]] = {}
    for peer_id in peer_ids:
        asked.setdefault(round_.roles.get(peer_id, TRAIN), []).append(peer_id)
    return tuple(
        OfferWork(
            round=round_.number,
            peer_ids=tuple(those),
            work=Work(role=role, base=round_.base_version),
            reason=reason,
        )
        for role, those in asked.items()
    )


def _causes(round_: RoundState) -> str:
    """What cost the round its updates, for whoever asks why it was skipped."""
    expired = AssignmentStatus.EXPIRED
    reasons = [each.reason for each in round_.assignments.failed if each.status is not expired]
    more = f" (and {len(reasons) - CAUSES_TOLD} more)" if len(reasons) > CAUSES_TOLD else ""
    return f"; {'; '.join(reasons[:CAUSES_TOLD])}{more}" if reasons else ""


def _peers_prepare(count: int) -> str:
    return "1 peer prepares" if count == 1 else f"{count} peers prepare"
