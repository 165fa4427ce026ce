"""What the failure detector works on: members, what may happen to them, and the limits that it applies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from coordinator.engine.state import ADMIN, PeerStatus, PeerView

_WATCHED = (PeerStatus.ACTIVE, PeerStatus.SUSPECT, PeerStatus.DRAINING)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Both count from a peer's last sign of life.

    Lower: a dead peer is noticed and replaced sooner. Higher: a slow network or a busy machine is not
    mistaken for death. A lost peer's work may be offered again as soon as it is back, so a mistake costs
    one attempt.
    """

    suspect_seconds: float
    lost_seconds: float
    pending_seconds: float = (
        3600.0  # a name whose peer has not come once for so long after its enrolment is free again
    )
    away_seconds: float = 86_400.0  # a peer that is lost for so long counts no more against `peers_max`
    peers_max: int = (
        10_000  # beyond so many names those are forgotten that count no more and that no row names
    )


@dataclass(frozen=True, kw_only=True)
class Member:
    """What is known of one peer."""

    peer_id: str
    status: PeerStatus
    reason: str
    epoch: int = 0  # of its newest session; 0: it has never been here
    connected: bool = False
    seen_at: float = 0.0  # its last sign of life; for one read from the store, the coordinator's start
    secret_hash: str = ""
    device: str = ""
    muster_version: str = ""
    instance: str = ""  # of its daemon: another one for each start
    met: str = (
        ""  # the instance that has opened a session: what it enrols with alone is no sign of a new start
    )


class Record(Protocol):
    """A member's row, as a store gives it."""

    @property
    def peer_id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def secret_hash(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def muster_version(self) -> str: ...
    @property
    def instance(self) -> str: ...


@dataclass(frozen=True)
class Members:
    """`watched` are those of `peers` whose silence means something. Whatever happens to one peer often, as a
    heartbeat, must not make these anew: that costs as much as there are peers."""

    peers: Mapping[str, Member] = field(default_factory=dict[str, Member])
    views: Mapping[str, PeerView] = field(default_factory=dict[str, PeerView])
    watched: Mapping[str, Member] = field(default_factory=dict[str, Member])

    @classmethod
    def restored(cls, records: Iterable[Record], now: float) -> Members:
        """After a start nobody is connected, and everybody has the usual time to come back."""
        return cls().put(*(_restored(record, now) for record in records))

    def reread(self, records: Iterable[Record], now: float) -> Members:
        """The members as they are stored, where another writer has changed them: with each the sign of life and the
        session that it has here, as long as no newer session is stored."""
        members: list[Member] = []
        for record in records:
            member, known = _restored(record, now), self.peers.get(record.peer_id)
            if known is not None:
                here = known.connected and known.epoch == member.epoch
                member = replace(member, seen_at=known.seen_at, connected=here)
            members.append(member)
        return Members().put(*members)

    def get(self, peer_id: str) -> Member | None:
        return self.peers.get(peer_id)

    def put(self, *changed: Member) -> Members:
        peers, views, watched = dict(self.peers), dict(self.views), dict(self.watched)
        for member in changed:
            peer_id = member.peer_id
            peers[peer_id] = member
            views[peer_id] = PeerView(
                peer_id=peer_id,
                status=member.status,
                connected=member.connected,
                instance=member.met,
            )
            watched.pop(peer_id, None)
            if member.status in _WATCHED:
                watched[peer_id] = member
        return Members(peers, views, watched)

    def without(self, *gone: str) -> Members:
        names = set(gone)
        return Members().put(*(member for peer_id, member in self.peers.items() if peer_id not in names))


def _restored(record: Record, now: float) -> Member:
    return Member(
        peer_id=record.peer_id,
        status=PeerStatus(record.state),
        reason=record.reason,
        epoch=record.epoch,
        seen_at=now,
        secret_hash=record.secret_hash,
        device=record.device,
        muster_version=record.muster_version,
        instance=record.instance,
        met=record.instance,
    )


# -- events ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PeerEvent:
    """What may happen to members."""

    peer_id: str


@dataclass(frozen=True, kw_only=True)
class Enrolled(PeerEvent):
    """For the first time, or again with the same secret; with another one only under the name of a removed peer."""

    secret_hash: str
    device: str
    muster_version: str
    instance: str = ""


@dataclass(frozen=True, kw_only=True)
class Connected(PeerEvent):
    """A new session; the decision gives it its epoch."""


@dataclass(frozen=True, kw_only=True)
class Disconnected(PeerEvent):
    """A session has ended."""

    epoch: int
    goodbye: bool = False  # the peer said that it leaves


@dataclass(frozen=True, kw_only=True)
class HeartbeatSeen(PeerEvent):
    """A heartbeat of a session."""

    epoch: int


@dataclass(frozen=True, kw_only=True)
class Command(PeerEvent):
    """What an admin says of a peer."""

    actor: str = ADMIN


@dataclass(frozen=True, kw_only=True)
class Drain(Command):
    """An admin lets a peer finish and gives it nothing new."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Quarantine(Command):
    """An admin shuts a peer out, and keeps it."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Release(Command):
    """Ends a quarantine or a draining."""


@dataclass(frozen=True, kw_only=True)
class Remove(Command):
    """An admin forgets a peer."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """Time has passed; looks at everybody. `heard` has signs of life that are newer than a member tells."""

    heard: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Forgets who enrolled long ago and has never come, so that names which nobody uses do not fill the table; where
    there are too many, also who is removed or was lost long ago and is not in `named`: those that a run's rows name.
    """

    named: frozenset[str] = frozenset()
