"""The shell around the membership detector: who may call, who is there, and what an admin says of them."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import structlog

from coordinator.engine.state import PeerStatus, PeerView
from coordinator.events import Committed, Notice
from coordinator.journal import Journal, Outcome, store_backoff
from coordinator.membership import detector
from coordinator.membership.detector import Connected, HeartbeatSeen, Member, Members, PeerEvent, Prune, Tick
from coordinator.store import Store, Trouble, trouble
from muster.config.settings import CoordinatorConfig
from muster.errors import AuthenticationError, NotAllowedError, NotFoundError, StorageError
from muster.files.digests import digest_bytes
from muster.runtime import clock

log = structlog.get_logger()

Changed = Callable[[Sequence[tuple[str, str]]], Awaitable[None]]


class MemberBook:
    """The members in memory, moved by committed decisions of the detector."""

    def __init__(self, *, journal: Journal, config: CoordinatorConfig) -> None:
        self._journal = journal
        self._changed: Changed | None = None
        self._limits = detector.Limits(
            suspect_seconds=config.suspect_seconds,
            lost_seconds=config.lost_seconds,
            peers_max=config.peers_max,
        )
        self._members = Members()
        # When a peer was heard last, where that is all that its heartbeats change: they come so often that nothing
        # else must be touched for one.
        self._heard: dict[str, float] = {}

    def on_change(self, changed: Changed) -> None:
        """`changed` is awaited after each change, with the peers that are gone for now and why."""
        self._changed = changed

    def hear(self, notice: Notice) -> None:
        """Subscriber: who is forgotten needs no sign of life any more."""
        for transition in notice.transitions if isinstance(notice, Committed) else ():
            if transition.entity == "peer" and transition.removes:
                self._heard.pop(transition.peer_id, None)

    def restore(self, records: Iterable[detector.Record]) -> None:
        """For a start."""
        self._members = Members.restored(_sound(records), now=clock.now())

    async def _reload(self, store: Store) -> None:
        """What is stored, which is not as it was believed here; who is connected stays so."""
        self._members = self._members.reread(_sound(await store.load_peers()), now=clock.now())

    def get(self, peer_id: str) -> Member | None:
        return self._members.get(peer_id)

    def count(self) -> int:
        """Of the names that count against `peers_max`."""
        return detector.counted(self._members, clock.now(), self._limits)

    def crowded(self) -> bool:
        """Whether there are more names than `peers_max`, those that no longer count included."""
        return len(self._members.peers) > self._limits.peers_max

    def seen_at(self, peer_id: str) -> float:
        """Its last sign of life."""
        member = self.get(peer_id)
        return max(member.seen_at if member else 0.0, self._heard.get(peer_id, 0.0))

    async def heartbeat(self, peer_id: str, epoch: int) -> bool:
        """Notes a sign of life. False if the session is over: the peer was given up, or has a newer one."""
        member = self.get(peer_id)
        if member is None or not detector.unmoved_by_heartbeat(member, epoch):
            return (await self.submit(HeartbeatSeen(peer_id=peer_id, epoch=epoch))).accepted
        self._heard[peer_id] = clock.now()
        return True

    def views(self) -> Mapping[str, PeerView]:
        return self._members.views

    def authenticate(self, peer_id: str, secret: str) -> str:
        """The peer id, if the secret is that peer's and it may take part. Raises `AuthenticationError`,
        `NotAllowedError`."""
        member = self.get(peer_id)
        if member is None or not hmac.compare_digest(member.secret_hash, hash_secret(secret)):
            raise AuthenticationError(
                "peer.unknown",
                f"peer {peer_id!r} is not enrolled here with that secret",
                fix="muster join enrols it again; if the name is taken, choose another",
            )
        if member.status is PeerStatus.REVOKED:
            raise NotAllowedError(
                "peer.removed",
                f"peer {peer_id!r} was removed and cannot come back",
                cause=member.reason,
                fix="if it shall take part again, as a new peer: join with an empty data folder (--data-dir)",
            )
        return peer_id

    def authenticate_sender(self, peer_id: str, secret: str) -> str:
        """The same for who sends an update: one in quarantine may not."""
        self.authenticate(peer_id, secret)
        member = self.get(peer_id)
        if member is not None and member.status is PeerStatus.QUARANTINED:
            raise NotAllowedError(
                "peer.quarantined", f"updates of {peer_id!r} are refused", cause=member.reason
            )
        return peer_id

    async def connect(self, peer_id: str) -> int:
        """A new session; gives its epoch. Raises `NotAllowedError` if the peer was removed meanwhile."""
        committed = await self.submit(Connected(peer_id=peer_id))
        if not committed.accepted:
            raise NotAllowedError("peer.removed", committed.reason)
        return int(committed.transitions[0].data["epoch"])

    async def submit(self, event: PeerEvent | Tick | Prune) -> Committed:
        """Feeds one event to the detector; durable when it returns."""
        committed = await self._journal.submit(lambda: self._decide(event))
        if committed.transitions and self._changed is not None:
            await self._changed(detector.gone(committed.transitions))
        return committed

    async def submit_surely(self, event: PeerEvent | Tick | Prune) -> None:
        """For what cannot be asked again: while the store takes nothing it is tried again, ever more seldom."""
        backoff = store_backoff()
        while True:
            try:
                await self.submit(event)
            except StorageError as error:
                if trouble(error) is not Trouble.TRANSIENT:
                    raise
                log.warning("event.retried", event_kind=type(event).__name__, reason=str(error))
                await asyncio.sleep(backoff.next_delay())
            else:
                return

    async def command(self, event: PeerEvent) -> str:
        """The same for what an admin says; gives the reason. Raises `NotFoundError` for an unknown peer."""
        if self.get(event.peer_id) is None:
            raise NotFoundError("peer.not_found", f"no peer {event.peer_id!r}", fix="muster peer list")
        return (await self.submit(event)).reason

    def _decide(self, event: PeerEvent | Tick | Prune) -> Outcome:
        before = self._members
        if isinstance(event, Tick):
            event = Tick(heard=self._heard)
        decision = detector.decide(before, event, clock.now(), self._limits)
        self._members = decision.members

        def undo() -> None:
            self._members = before

        return Outcome(
            transitions=decision.transitions,
            accepted=decision.accepted,
            undo=undo,
            reload=self._reload,
            reason=decision.reason,
        )


def _sound(records: Iterable[detector.Record]) -> list[detector.Record]:
    found: list[detector.Record] = []
    for record in records:
        if record.state in set(PeerStatus):
            found.append(record)
        else:  # it costs that peer and no other
            log.error("peer.unreadable", peer_id=record.peer_id, reason=f"its state is {record.state!r}")
    return found


def hash_secret(secret: str) -> str:
    """The digest under which a secret is stored."""
    return digest_bytes(secret.encode())
