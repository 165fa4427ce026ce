"""Who is there: a pure failure detector over heartbeats and sessions.

    PENDING -> ACTIVE <-> SUSPECT -> LOST -> ACTIVE (it came back)
    DRAINING: keeps what it holds, gets no new work, LOST when it is gone
    QUARANTINED: may stay connected, gets no work, its updates are refused, until it is released
    REVOKED: with that secret never again; its name is free, and who takes it, with another, is a new peer

A name's epoch grows with each session under it; what an older session still says is ignored. Heartbeats
change no row; only transitions do. A connection that is lost and soon had again changes rows and tells no event,
so that a poor network does not fill the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from coordinator.engine.state import COORDINATOR, PeerStatus, Transition
from coordinator.membership.state import (
    Command,
    Connected,
    Disconnected,
    Drain,
    Enrolled,
    HeartbeatSeen,
    Limits,
    Member,
    Members,
    PeerEvent,
    Prune,
    Quarantine,
    Record,
    Release,
    Remove,
    Tick,
)

__all__ = [
    "Command",
    "Connected",
    "Disconnected",
    "Drain",
    "Enrolled",
    "HeartbeatSeen",
    "Limits",
    "Member",
    "Members",
    "MembershipDecision",
    "PeerEvent",
    "Prune",
    "Quarantine",
    "Record",
    "Release",
    "Remove",
    "Tick",
    "counted",
    "decide",
    "gone",
    "tells_nothing_new",
    "unmoved_by_heartbeat",
]

_GONE = (PeerStatus.LOST, PeerStatus.QUARANTINED, PeerStatus.REVOKED)


class MembershipDecision(NamedTuple):
    """Without a transition no row changes, and the reason says why. `accepted`: the event did what it is for, or that
    was so before."""

    members: Members
    transitions: tuple[Transition, ...]
    reason: str
    accepted: bool = True


def decide(
    members: Members, event: PeerEvent | Tick | Prune, now: float, limits: Limits
) -> MembershipDecision:
    """The decision that follows from an event of a peer, a command, or time."""
    decision = _decide(members, event, now, limits)
    if not decision.transitions:
        return decision
    actor = _actor(event)
    return decision._replace(transitions=tuple(replace(each, actor=actor) for each in decision.transitions))


def _actor(event: PeerEvent | Tick | Prune) -> str:
    match event:
        case Command():
            return event.actor
        case Enrolled() | Connected() | HeartbeatSeen() | Disconnected(goodbye=True):
            return f"peer:{event.peer_id}"
        case _:
            return COORDINATOR


def _decide(
    members: Members, event: PeerEvent | Tick | Prune, now: float, limits: Limits
) -> MembershipDecision:
    if isinstance(event, Tick):
        return _tick(members, event, now, limits)
    if isinstance(event, Prune):
        return _prune(members, event, now, limits)
    if isinstance(event, Enrolled):
        return _enrol(members, event, now)
    member = members.get(event.peer_id)
    if member is None:
        return _refused(members, f"{event.peer_id} is not enrolled")
    if member.status is PeerStatus.REVOKED:
        return _refused(members, f"{event.peer_id} was removed")
    return _HANDLERS[type(event)](members, member, event, now)


def counted(members: Members, now: float, limits: Limits) -> int:
    """How many names count against the most that there may be."""
    return sum(not _is_over(member, now, limits) for member in members.peers.values())


def _is_over(member: Member, now: float, limits: Limits) -> bool:
    if member.status is PeerStatus.LOST:
        return now - member.seen_at >= limits.away_seconds
    if member.status is PeerStatus.PENDING:
        return now - member.seen_at >= limits.pending_seconds
    return member.status is PeerStatus.REVOKED


def gone(transitions: Iterable[Transition]) -> tuple[tuple[str, str], ...]:
    """Of a decision's transitions: the peers that can do no work any more, each with the reason."""
    return tuple((t.peer_id, t.reason) for t in transitions if t.values.get("state") in _GONE)


def _enrol(members: Members, event: Enrolled, now: float) -> MembershipDecision:
    member = members.get(event.peer_id)
    facts = _facts(event)
    if member is None:
        reason = f"{event.peer_id} enrolled and has not been here yet"
        made = Member(peer_id=event.peer_id, status=PeerStatus.PENDING, reason=reason, seen_at=now, **facts)
        values = {**facts, "enrolled_at": now}
        return _decided(members, None, made, "peer.enrolled", now, values=values)
    if member.status is PeerStatus.REVOKED:
        return _taken_over(members, member, event, now, facts)
    if event.secret_hash != member.secret_hash:
        return _refused(members, f"the name {event.peer_id} belongs to another peer")
    if tells_nothing_new(member, event):
        return MembershipDecision(members, (), f"{event.peer_id} is enrolled already")
    anew = "started anew" if event.instance != member.instance else "enrolled again"
    reason = f"{event.peer_id} {anew}, with Muster {event.muster_version} on {event.device}"
    return _decided(
        members, member, replace(member, reason=reason, **facts), "peer.enrolled", now, values=facts
    )


def tells_nothing_new(member: Member, event: Enrolled) -> bool:
    """Whether an enrolment repeats what is known."""
    return all(getattr(member, name) == value for name, value in _facts(event).items())


def _facts(event: Enrolled) -> dict[str, Any]:
    return {
        "secret_hash": event.secret_hash,
        "device": event.device,
        "muster_version": event.muster_version,
        "instance": event.instance,
    }


def _taken_over(
    members: Members, member: Member, event: Enrolled, now: float, facts: Mapping[str, Any]
) -> MembershipDecision:
    """A removed peer's name, by whoever is not that peer. The history under the name stays, and its epoch grows on."""
    if event.secret_hash == member.secret_hash:
        return _refused(members, f"{event.peer_id} was removed and cannot come back")
    reason = f"{event.peer_id} enrolled as a new peer, under the name of one that was removed"
    fresh = replace(member, status=PeerStatus.PENDING, reason=reason, seen_at=now, **facts)
    values = {**facts, "enrolled_at": now}
    return _decided(members, member, fresh, "peer.enrolled", now, values=values)


def _connected(members: Members, member: Member, _: Connected, now: float) -> MembershipDecision:
    epoch = member.epoch + 1
    stays = member.status in (PeerStatus.DRAINING, PeerStatus.QUARANTINED)
    status = member.status if stays else PeerStatus.ACTIVE
    what = "connected" if epoch == 1 else "is back"
    told = f", still {status}" if stays else ""
    reason = f"{member.peer_id} {what} with session {epoch}{told}"
    met = replace(
        member,
        status=status,
        reason=reason,
        epoch=epoch,
        connected=True,
        seen_at=now,
        met=member.instance,
    )
    soon = epoch > 1 and member.status in (PeerStatus.ACTIVE, PeerStatus.SUSPECT)
    return _decided(members, member, met, "" if soon else "peer.connected", now)


def _disconnected(members: Members, member: Member, event: Disconnected, now: float) -> MembershipDecision:
    if (stale := _stale(member, event.epoch)) is not None:
        return _refused(members, stale)
    how = "left" if event.goodbye else "lost its connection"
    left = replace(member, connected=False, seen_at=now)
    if member.status is PeerStatus.DRAINING and event.goodbye:
        reason = f"{member.peer_id} was draining and left"
        lost = replace(left, status=PeerStatus.LOST, reason=reason)
        return _decided(members, member, lost, "peer.lost", now)
    if member.status is PeerStatus.ACTIVE:
        reason = f"{member.peer_id} {how}"
        suspect = replace(left, status=PeerStatus.SUSPECT, reason=reason)
        return _decided(members, member, suspect, "peer.suspected" if event.goodbye else "", now)
    return MembershipDecision(members.put(left), (), f"{member.peer_id} {how} and stays {member.status}")


def _heartbeat(members: Members, member: Member, event: HeartbeatSeen, now: float) -> MembershipDecision:
    if (stale := _stale(member, event.epoch)) is not None:
        return _refused(members, stale)
    seen = replace(member, seen_at=now)
    if member.status is PeerStatus.SUSPECT:
        reason = f"{member.peer_id} sends heartbeats again"
        back = replace(seen, status=PeerStatus.ACTIVE, reason=reason)
        return _decided(members, member, back, "peer.recovered", now)
    return MembershipDecision(members.put(seen), (), f"{member.peer_id} is {member.status}")


def _drain(members: Members, member: Member, event: Drain, now: float) -> MembershipDecision:
    if member.status not in (PeerStatus.PENDING, PeerStatus.ACTIVE, PeerStatus.SUSPECT):
        return _refused(members, f"{member.peer_id} is {member.status} and gets no work anyway")
    reason = f"{member.peer_id} is draining and gets no new work{_why(event.reason)}"
    draining = replace(member, status=PeerStatus.DRAINING, reason=reason)
    return _decided(members, member, draining, "peer.draining", now)


def _quarantine(members: Members, member: Member, event: Quarantine, now: float) -> MembershipDecision:
    if member.status is PeerStatus.QUARANTINED:
        return MembershipDecision(members, (), f"{member.peer_id} is QUARANTINED already")
    reason = f"{member.peer_id} is quarantined: it gets no work, its updates are refused{_why(event.reason)}"
    held = replace(member, status=PeerStatus.QUARANTINED, reason=reason)
    return _decided(members, member, held, "peer.quarantined", now)


def _release(members: Members, member: Member, _: Release, now: float) -> MembershipDecision:
    if member.status not in (PeerStatus.QUARANTINED, PeerStatus.DRAINING):
        told = f"{member.peer_id} is {member.status}: there is nothing to release it from"
        return _refused(members, told)
    if member.connected:
        status, where = PeerStatus.ACTIVE, "it gets work again"
    elif member.epoch == 0:
        status, where = PeerStatus.PENDING, "it has not been here yet"
    else:
        status, where = PeerStatus.SUSPECT, "it is not connected"
    reason = f"{member.peer_id} is released from being {member.status}: {where}"
    free = replace(member, status=status, reason=reason, seen_at=now)
    return _decided(members, member, free, "peer.released", now)


def _remove(members: Members, member: Member, event: Remove, now: float) -> MembershipDecision:
    reason = f"{member.peer_id} is removed, and its name is free{_why(event.reason)}"
    revoked = replace(member, status=PeerStatus.REVOKED, reason=reason, connected=False)
    return _decided(members, member, revoked, "peer.revoked", now)


_HANDLERS: dict[type[PeerEvent], Callable[[Members, Member, Any, float], MembershipDecision]] = {
    Connected: _connected,
    Disconnected: _disconnected,
    HeartbeatSeen: _heartbeat,
    Drain: _drain,
    Quarantine: _quarantine,
    Release: _release,
    Remove: _remove,
}


def _tick(members: Members, event: Tick, now: float, limits: Limits) -> MembershipDecision:
    transitions: list[Transition] = []
    changed: list[Member] = []
    for member in members.watched.values():
        seen_at = max(member.seen_at, event.heard.get(member.peer_id, 0.0))
        silence = now - seen_at
        if member.status is PeerStatus.ACTIVE and silence >= limits.suspect_seconds:
            if member.connected:
                reason = f"{member.peer_id} has sent no heartbeat for {silence:.1f} s"
            else:  # read from the store as ACTIVE, and not seen since
                reason = f"{member.peer_id} is not back {silence:.1f} s after the coordinator's start"
            after = replace(member, status=PeerStatus.SUSPECT, reason=reason, seen_at=seen_at)
            kind = "peer.suspected"
        elif member.status is not PeerStatus.ACTIVE and silence >= limits.lost_seconds:
            reason = f"{member.peer_id} has given no sign of life for {silence:.1f} s"
            after = replace(member, status=PeerStatus.LOST, reason=reason, connected=False, seen_at=seen_at)
            kind = "peer.lost"
        else:
            continue
        changed.append(after)
        transitions.append(_transition(member, after, kind, now))
    if not transitions:
        return MembershipDecision(members, (), "everybody is as before")
    reasons = "; ".join(transition.reason for transition in transitions)
    return MembershipDecision(members.put(*changed), tuple(transitions), reasons)


def _prune(members: Members, event: Prune, now: float, limits: Limits) -> MembershipDecision:
    transitions: list[Transition] = []
    for member in members.peers.values():
        silence = now - member.seen_at
        if member.status is PeerStatus.PENDING and member.epoch == 0 and silence >= limits.pending_seconds:
            why = f"has not come once in {silence:.0f} s since it enrolled"
            transitions.append(_forgotten(member, why, now))
    surplus = len(members.peers) - len(transitions) - limits.peers_max
    if surplus > 0:
        over = [
            m for m in members.peers.values() if _is_over(m, now, limits) and m.peer_id not in event.named
        ]
        for member in sorted(over, key=lambda each: each.seen_at)[:surplus]:
            why = f"is {member.status} for {now - member.seen_at:.0f} s, and there are too many names"
            transitions.append(_forgotten(member, why, now))
    if not transitions:
        return MembershipDecision(members, (), "nobody is to be forgotten")
    told = f"{len(transitions)} that did not come or are long gone are forgotten"
    return MembershipDecision(members.without(*(t.peer_id for t in transitions)), tuple(transitions), told)


def _forgotten(member: Member, why: str, now: float) -> Transition:
    after = replace(member, reason=f"{member.peer_id} {why}: it is forgotten")
    return replace(_transition(member, after, "peer.forgotten", now), values={}, removes=True)


def unmoved_by_heartbeat(member: Member, epoch: int) -> bool:
    """Whether a heartbeat of this session changes nothing but when the peer was seen."""
    return _stale(member, epoch) is None and member.status is not PeerStatus.SUSPECT


def _stale(member: Member, epoch: int) -> str | None:
    if epoch != member.epoch:
        return f"session {epoch} of {member.peer_id} is over; the newest is session {member.epoch}"
    if not member.connected:
        return f"session {epoch} of {member.peer_id} has ended"
    return None


def _why(reason: str) -> str:
    return f": {reason}" if reason else ""


def _refused(members: Members, reason: str) -> MembershipDecision:
    return MembershipDecision(members, (), reason, accepted=False)


def _decided(
    members: Members,
    before: Member | None,
    after: Member,
    kind: str,
    now: float,
    *,
    values: Mapping[str, Any] | None = None,
) -> MembershipDecision:
    transition = _transition(before, after, kind, now, values=values)
    return MembershipDecision(members.put(after), (transition,), after.reason)


def _transition(
    before: Member | None,
    after: Member,
    kind: str,
    now: float,
    *,
    values: Mapping[str, Any] | None = None,
) -> Transition:
    row: dict[str, Any] = {
        "state": str(after.status),
        "reason": after.reason,
        "epoch": after.epoch,
        "seen_at": after.seen_at,
        **(values or {}),
    }
    return Transition(
        kind=kind,
        entity="peer",
        key={"peer_id": after.peer_id},
        before=str(before.status) if before is not None else None,
        values=row,
        reason=after.reason,
        at=now,
        peer_id=after.peer_id,
        data={"state": row["state"], "epoch": after.epoch},
    )
