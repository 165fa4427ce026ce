"""Jobs in the process of whoever asks for them: what trains in a simulation, where a process for each peer would cost
more than all of its work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from muster.errors import StateError, TaskError
from muster.worker.outcomes import Job, attempt, result_of

_ONE_AT_A_TIME = threading.Lock()  # jobs use torch's generators and settings, which a process has once


class InlineWorker:
    """See `muster.worker.base.Worker`. A job runs in an executor of its own, on a `VirtualLoop` in the loop's thread.

    `seconds` is asked how long each job takes beside what it really computes; on a virtual loop it is all its time.
    Code and data are loaded once for all scopes, a crash of a job ends the program, one that hangs is never stopped.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        *,
        label: str,
        device: str = "cpu",
        seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._jobs = jobs
        self._label = label
        self._device = device
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=label)
        self._closed = False

    async def start(self) -> None:
        pass

    async def run(
        self,
        job: str,
        args: Mapping[str, Any],
        *,
        timeout_seconds: float,
        scope: str = "",  # the interface's
        on_progress: Callable[[float], None] | None = None,
    ) -> dict[str, Any]:
        async with self._turn:
            if self._closed:
                raise StateError("worker.closed", f"worker {self._label!r} was closed")
            try:
                async with asyncio.timeout(timeout_seconds):
                    outcome = await self._outcome(job, args, on_progress)
            except TimeoutError:
                raise TaskError(
                    "worker.timeout",
                    f"job {job!r} of worker {self._label!r} was not done after {timeout_seconds:g} s",
                    cause="more work than the time allows",
                    fix="raise the deadline",
                ) from None
            return result_of(outcome, job=job, worker=self._label)

    async def _outcome(
        self, job: str, args: Mapping[str, Any], on_progress: Callable[[float], None] | None
    ) -> dict[str, Any]:
        if (seconds := self._seconds()) > 0:
            await asyncio.sleep(seconds)
        loop = asyncio.get_running_loop()
        # One thread, whatever the machine has: bits may depend on their number.
        given = {"device": self._device, **args, **({"threads": 1} if "threads" in args else {})}

        def progress(share: float) -> None:
            if on_progress is not None:
                loop.call_soon_threadsafe(on_progress, share)

        def work() -> dict[str, Any]:
            with _ONE_AT_A_TIME:
                return attempt(self._jobs, job, given, progress)

        return await loop.run_in_executor(self._thread, work)

    def forget(self, scope: str) -> None:
        pass  # what is loaded serves all scopes

    async def close(self) -> None:
        self._closed = True
        self._thread.shutdown(wait=False)


@contextmanager
def inline_jobs(sites: int) -> Generator[None]:
    """While jobs run in this process: they begin with nothing loaded, keep what so many sites have loaded, and leave
    neither that nor torch's settings changed."""
    import torch

    from coordinator.workers import jobs as coordinator_jobs
    from peer.work import jobs as peer_jobs

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    peer_jobs.start_over(sites)
    coordinator_jobs.start_over()
    try:
        yield
    finally:
        peer_jobs.start_over()
        coordinator_jobs.start_over()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
