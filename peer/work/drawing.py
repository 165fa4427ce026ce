"""Version 0 of a run, drawn here by the task itself instead of being fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from muster.runtime import clock
from muster.spec.model import RunSpec
from peer.store.models import DeadlineAt
from peer.work.devices import WorkerPool
from peer.work.orders import Site, draw_order
from peer.work.policy import Policy
from protos.v1.membership_pb2 import Assignment


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Draws a run's initial version here instead of fetching it."""

    site: Site
    policy: Policy
    workers: WorkerPool

    async def draw(self, offer: Assignment, target: Path, deadline_at: DeadlineAt) -> str:
        """Waits for a worker, which writes to `target` what the task draws from the run's seed; gives its
        digest. Raises `MusterError`: the version has to be fetched then. A drawing that fails or is cancelled may cost
        the worker's process, and with it the data that it kept warm.
        """
        spec = RunSpec.from_json(offer.spec_json)
        data = self.policy.permit(spec.task)
        async with self.workers.desk(self.site.name) as desk:
            order = draw_order(self.site, offer, spec, data=data, device=desk.device, target=target)
            # As much time as training gets: where `Task.model` is slow or hangs, it does so there too.
            made = await desk.run("draw", order, seconds_left=deadline_at() - clock.now())
        return str(made["digest"])
