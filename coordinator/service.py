"""The coordinator as a whole: an asyncio shell around pure decisions, which starts, goes on and stops.

State lives in memory and in the store alike; after a restart it is read back and every run goes on. The parts are put
together in `coordinator/wiring`; none of them is given the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from coordinator.background import Background
from coordinator.effects.aggregation import RoundAggregation
from coordinator.engine.state import Restored
from coordinator.intake.spool_quota import SpoolQuota
from coordinator.journal import Journal
from coordinator.membership.members import MemberBook
from coordinator.membership.watch import MembershipWatch
from coordinator.repairs import Repairs
from coordinator.replay import Replays
from coordinator.retention import Retention
from coordinator.rpc.offers import SessionBook
from coordinator.runs import Runs
from coordinator.store import Store
from coordinator.submission.submissions import Submissions
from coordinator.timers import RunTimers
from coordinator.workers.task_jobs import TaskJobs
from muster.errors import MusterError
from muster.files.blobs import BlobStore
from muster.runtime import clock
from muster.transport.base import Route


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """For whoever starts and stops it; `routes` are what it serves, `holder` names it as the store's one writer."""

    store: Store
    blobs: BlobStore
    background: Background
    journal: Journal
    runs: Runs
    members: MemberBook
    watch: MembershipWatch
    sessions: SessionBook
    timers: RunTimers
    tasks: TaskJobs
    submissions: Submissions
    quota: SpoolQuota
    repairs: Repairs
    aggregation: RoundAggregation
    retention: Retention
    replays: Replays
    routes: Sequence[Route]
    holder: str
    executors: Sequence[Executor]

    @property
    def failed(self) -> asyncio.Future[MusterError]:
        """Has the error once a loop ended that the coordinator cannot do without."""
        return self.background.failed

    async def start(self) -> None:
        """Claims the store, reads back what is durable and takes up every run where it stands."""
        self.journal.fence = await self.store.take_fence(self.holder, clock.now())
        self.members.restore(await self.store.load_peers())
        unread: dict[str, str] = {}
        await self.runs.restore(await self.store.load_runs(unread), unread)
        await self.tasks.open()
        await self.retention.sweep()
        for loop in (self.journal.run, self.timers.run, self.watch.run):
            self.background.spawn_vital(loop())
        for run_id in list(self.runs):
            await self.runs.post_surely(Restored(run_id=run_id))

    async def stop(self) -> None:
        self.sessions.close_all("the coordinator is stopping", reconnect=True)
        await self.background.stop()
        await self.tasks.close()
        for executor in self.executors:
            executor.shutdown(wait=True, cancel_futures=True)
        await self.store.close()
