"""Ticks the membership detector, forgets unused names and old events, and tells runs which peers are gone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import structlog

from coordinator.engine.state import PeerGone
from coordinator.journal import Journal
from coordinator.membership import detector
from coordinator.membership.members import MemberBook
from coordinator.runs import Runs
from coordinator.store import Store
from muster.errors import StorageError
from muster.runtime import clock

log = structlog.get_logger()

TICK_SECONDS = 0.5  # how often heartbeats are looked at
PEER_EVENTS_KEEP = 200  # of each peer, beside those of runs
EVENTS_PRUNE_SECONDS = 3600.0
PRUNE_SECONDS = 60.0  # how often names are looked for that nobody came for


class MembershipWatch:
    """Looks at heartbeats in time, and prunes names and events."""

    def __init__(
        self,
        *,
        members: MemberBook,
        runs: Runs,
        store: Store,
        journal: Journal,
        heartbeat_seconds: float,
    ) -> None:
        self._members = members
        self._runs = runs
        self._store = store
        self._journal = journal
        self._tick_seconds = min(TICK_SECONDS, heartbeat_seconds / 2)

    async def changed(self, lost: Sequence[tuple[str, str]]) -> None:
        """Runs hear of peers that are gone, each with the reason, and look again at who is there."""
        for peer_id, reason in lost:
            for run_id in list(self._runs):
                await self._runs.post_surely(PeerGone(run_id=run_id, peer_id=peer_id, reason=reason))
        await self._runs.tick_all()

    async def run(self) -> None:
        """Until cancelled."""
        pruned_at, events_pruned_at = clock.now(), -math.inf
        while True:
            await asyncio.sleep(self._tick_seconds)
            await self._members.submit_surely(detector.Tick())
            if clock.now() >= pruned_at + PRUNE_SECONDS:
                pruned_at = clock.now()
                await self._prune_names()
            if clock.now() >= events_pruned_at + EVENTS_PRUNE_SECONDS:
                events_pruned_at = clock.now()
                await self._prune_events()

    async def _prune_names(self) -> None:
        try:
            named = await self._store.named_peers() if self._members.crowded() else frozenset[str]()
        except StorageError as error:  # the next time will do
            log.warning("peers.not_pruned", error_id=error.id, reason=error.message)
        else:
            await self._members.submit_surely(detector.Prune(named=named))

    async def _prune_events(self) -> None:
        try:
            await self._store.prune_peer_events(PEER_EVENTS_KEEP, fence=self._journal.fence)
        except StorageError as error:  # the next time will do
            log.warning("events.not_pruned", error_id=error.id, reason=error.message)
