"""Wakes runs when they asked to be: each `WakeAt` of a decision becomes a `Tick`, in time order."""

from __future__ import annotations

import asyncio
import heapq

from coordinator.engine.state import Tick, WakeAt
from coordinator.events import Committed, Notice
from coordinator.runs import Runs
from muster.runtime import clock


class RunTimers:
    """Sends each run a `Tick` when it has asked for one."""

    def __init__(self, *, runs: Runs) -> None:
        self._runs = runs
        self._wakes: list[tuple[float, str]] = []
        self._changed = asyncio.Event()

    def hear(self, notice: Notice) -> None:
        """Subscriber."""
        if not isinstance(notice, Committed):
            return
        for effect in notice.effects:
            if isinstance(effect, WakeAt):
                heapq.heappush(self._wakes, (effect.at, effect.run_id))
                self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            now = clock.now()
            due: set[str] = set()
            while self._wakes and self._wakes[0][0] <= now:
                due.add(heapq.heappop(self._wakes)[1])
            for run_id in sorted(due):
                await self._runs.post_surely(Tick(run_id=run_id))
            timeout = max(0.0, self._wakes[0][0] - clock.now()) if self._wakes else None
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                continue
