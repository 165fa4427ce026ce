"""Tasks that run beside the calls: kept until done, watched, and ended together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from coordinator.store import Trouble, trouble
from muster.errors import InternalError, MusterError

log = structlog.get_logger()


class Background:
    """`failed` has a result once a loop ended that the coordinator cannot do without."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order of their start
        self.failed: asyncio.Future[MusterError] = asyncio.get_running_loop().create_future()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a task; a failure in it is a defect and is logged as one."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._finished)
        return task

    def spawn_vital(self, loop: Coroutine[Any, Any, None]) -> None:
        """Starts a loop without which a coordinator would only seem to work: better that its supervisor restarts it."""
        self.spawn(loop).add_done_callback(self._vital_ended)

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if (
            trouble(error) is not Trouble.FENCED
        ):  # which is no defect, and ends the coordinator with its reason
            log.error("task.failed", exc_info=error)

    def _vital_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.failed.done():
            return
        error = task.exception()
        if isinstance(error, MusterError) and trouble(error) is Trouble.FENCED:
            self.failed.set_result(error)
            return
        self.failed.set_result(
            InternalError(
                "coordinator.failed",
                f"a loop of the coordinator ended: {error!r}",
                fix="start it again: every run goes on",
            )
        )
