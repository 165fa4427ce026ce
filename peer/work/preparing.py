"""What a worker does once before it trains or evaluates for a run: it loads the data and tries the task out.

That may take longer than a round, and goes on when the assignment that it was begun for is over: the next one finds it
done, or waits for it. Only the end of its run stops it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from muster.errors import MusterError, TaskError
from peer.work.devices import WorkerPool, WorkerSlot
from peer.work.orders import PrepareOrder

log = structlog.get_logger()

ASK_SECONDS_MAX = 120.0  # for a worker to say what it has loaded; it may have to be started


@dataclass(kw_only=True)
class Preparations:
    """Prepares workers for runs, once for each run and worker."""

    workers: WorkerPool
    _done: set[tuple[str, str]] = field(
        default_factory=set[tuple[str, str]]
    )  # (run, role), in whichever worker
    _under_way: dict[asyncio.Task[None], str] = field(default_factory=dict[asyncio.Task[None], str])
    _waiting: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    def are_made(self, run_id: str, role: str) -> bool:
        """Whether some worker has been prepared for it. Whether it still is, only the worker knows."""
        return (run_id, role) in self._done

    @contextmanager
    def waits_for(self, tell: Callable[[], None]) -> Generator[None]:
        """While somebody waits for a desk: `tell` is called, once, if that may take as long as preparing does."""
        told = False

        def once() -> None:
            nonlocal told
            if not told:
                told = True
                tell()

        self._waiting.append(once)
        try:
            if self._under_way:
                once()
            yield
        finally:
            self._waiting.remove(once)

    async def is_ready(self, desk: WorkerSlot, order: PrepareOrder) -> bool:
        """Whether this worker process is prepared."""
        answer = await desk.run("is_ready", order, seconds_left=ASK_SECONDS_MAX)
        return bool(answer["ready"])

    async def make(self, desk: WorkerSlot, order: PrepareOrder, *, run_id: str, seconds: float) -> None:
        """Prepares the worker of a desk that the caller has. If the caller is cancelled it goes on, and the desk is not
        idle before it is done.

        Raises what `WorkerHost.run` raises; `TaskError` "task.not_prepared" when its time is over.
        """
        work = asyncio.create_task(self._make(desk, order, run_id, seconds))
        self._under_way[work] = run_id
        for tell in self._waiting:
            tell()
        work.add_done_callback(self._ended)
        self.workers.outlives(desk, work)
        await asyncio.shield(work)

    async def _make(self, desk: WorkerSlot, order: PrepareOrder, run_id: str, seconds: float) -> None:
        try:
            await desk.run("get_ready", order, seconds_left=seconds)
        except TaskError as error:
            if error.id != "worker.timeout":
                raise
            raise TaskError(
                "task.not_prepared",
                f"the task {order.task!r} had not loaded its data within {seconds:.0f} s",
                cause="round.prepare_seconds of the run spec is how long that may take",
                fix="raise [round] prepare_seconds, or load less in train_data; the stack tells where it stood",
                **error.fields,
            ) from error
        self._done.add((run_id, order.role))

    def _ended(self, work: asyncio.Task[None]) -> None:
        run_id = self._under_way.pop(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            # Whoever waits for it is told; if nobody does any more, the next assignment tries again and tells.
            known = isinstance(error, MusterError)
            log.warning(
                "preparation.failed", run_id=run_id, error=str(error), exc_info=None if known else error
            )

    async def forget(self, run_id: str) -> None:
        """The run is over."""
        self._done -= {key for key in self._done if key[0] == run_id}
        await _cancel([work for work, run in self._under_way.items() if run == run_id])

    async def close(self) -> None:
        await _cancel([*self._under_way])


async def _cancel(works: Sequence[asyncio.Task[None]]) -> None:
    for work in works:
        work.cancel()
    if works:
        await asyncio.wait(works)
