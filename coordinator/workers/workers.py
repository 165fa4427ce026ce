"""The coordinator's worker processes: one of its own for each run, so that no run waits for another's task.

A run's process is started when the run is submitted and forgotten at its end. Of the processes that have nothing to do
`IDLE_MAX` are kept, those used last; a run whose process went gets another, and loads its data again. The process of a
run that has ended makes room for a fresh one, which the next run takes: it has imported what takes long.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from muster.errors import StateError
from muster.worker.base import Worker

AT_WORK_MAX = 16  # jobs of runs at a time; more wait for a turn
CHECKS_MAX = 4  # tasks of submissions that are imported at a time, beside the jobs
IDLE_MAX = 4  # processes that wait for their run's next job


class RunWorkers:
    """`make` gives a host that has not started anything."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self._make = make
        self._hosts: OrderedDict[str, Worker] = OrderedDict()  # by run, the last one used at the end
        self._at_work: Counter[str] = Counter()
        self._spare: Worker | None = None
        self._jobs = asyncio.Semaphore(AT_WORK_MAX)
        self._checks = asyncio.Semaphore(CHECKS_MAX)
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(
        self, run_id: str, job: str, args: Mapping[str, Any], *, timeout_seconds: float, checks: bool = False
    ) -> dict[str, Any]:
        """A job of a run, or the check of one that is being submitted. Raises what `Worker.run` raises."""
        async with self._checks if checks else self._jobs:
            host = self._host(run_id)
            self._at_work[run_id] += 1
            try:
                return await host.run(job, args, timeout_seconds=timeout_seconds, scope=run_id)
            finally:
                self._at_work[run_id] -= 1
                if not self._at_work[run_id]:
                    del self._at_work[run_id]
                self._trim()

    def forget(self, run_id: str) -> None:
        """The run is over: what it has loaded goes, and a job of it that still runs is killed."""
        host = self._hosts.pop(run_id, None)
        if host is None or self._closed:
            return
        if self._spare is None and run_id not in self._at_work:
            host.forget(run_id)
            self._spare = host
        else:
            self._close(host)

    async def close(self) -> None:
        """Ends the processes; jobs that run are cancelled."""
        self._closed = True
        hosts = [*self._hosts.values(), *filter(None, [self._spare])]
        self._hosts.clear()
        self._spare = None
        await asyncio.gather(*(host.close() for host in hosts), *self._closing)

    def _host(self, run_id: str) -> Worker:
        if self._closed:
            raise StateError("worker.closed", "the coordinator is stopping")
        host = self._hosts.pop(run_id, None)
        if host is None:
            host, self._spare = self._spare or self._make(), None
        self._hosts[run_id] = host
        return host

    def _trim(self) -> None:
        idle = [run_id for run_id in self._hosts if run_id not in self._at_work]
        for run_id in idle[: max(0, len(idle) - IDLE_MAX)]:
            self._close(self._hosts.pop(run_id))

    def _close(self, host: Worker) -> None:
        closing = asyncio.get_running_loop().create_task(host.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
