"""Which files stay: what no round, replay or restart can ask for again is dropped after the commits that make it so.

Whoever names a new file holds `files` from the file's adoption until its row is committed, and files are dropped under
the same lock: equal bytes of two runs are one blob, which one run must not drop while the other is about to name it.
"""

from __future__ import annotations

import asyncio

import structlog

from coordinator.background import Background
from coordinator.events import Committed, Notice
from coordinator.intake.spool import Spool
from coordinator.journal import Journal
from coordinator.lookups import Assignments
from coordinator.store import Store
from muster.config.settings import CoordinatorConfig
from muster.files.blobs import BlobStore
from muster.runtime import clock

log = structlog.get_logger()

PRUNE_SECONDS = 2.0  # rounds that end within it share one look at what may go
_ENDS = frozenset({"round.committed", "round.skipped", "run.finished", "run.failed", "run.cancelled"})


class Retention:
    """Removes files that no round, replay or restart can ask for again."""

    def __init__(
        self,
        *,
        config: CoordinatorConfig,
        store: Store,
        journal: Journal,
        blobs: BlobStore,
        spool: Spool,
        assignments: Assignments,
        files: asyncio.Lock,
        background: Background,
    ) -> None:
        self._config = config
        self._store = store
        self._journal = journal
        self._blobs = blobs
        self._spool = spool
        self._assignments = assignments
        self._files = files
        self._background = background
        self._pruning = False

    def hear(self, notice: Notice) -> None:
        """Subscriber."""
        ends = isinstance(notice, Committed) and any(each.kind in _ENDS for each in notice.transitions)
        if ends and not self._pruning:
            self._pruning = True
            self._background.spawn(self._prune())

    async def sweep(self) -> None:
        """At start: what a kill left behind between a file's rename and its row."""
        keep = await self._store.live_blobs()
        await asyncio.to_thread(self._blobs.sweep, keep)
        self._spool.sweep(self._assignments.is_live)

    async def remove_run(self, run_id: str) -> None:
        """Forgets a run that has ended, with its files. Raises `NotFoundError`, `StateError` "run.live"."""
        async with self._files:
            now = clock.now()
            gone = await self._store.remove_run(
                run_id, now, f"run {run_id} was removed on request", fence=self._journal.fence
            )
            for digest in gone:
                await asyncio.to_thread(self._blobs.remove, digest)
        log.info("run.removed", run_id=run_id, files=len(gone))

    async def _prune(self) -> None:
        try:
            await asyncio.sleep(PRUNE_SECONDS)
            async with self._files:
                gone = await self._store.unneeded_blobs(
                    updates_keep_rounds=self._config.updates_keep_rounds,
                    models_keep=self._config.models_keep,
                    ended_runs_keep=self._config.ended_runs_keep,
                )
                await self._store.forget_blobs(gone, fence=self._journal.fence)
                self._spool.sweep(self._assignments.is_live)
                for digest in gone:
                    await asyncio.to_thread(self._blobs.remove, digest)
        finally:
            self._pruning = False
