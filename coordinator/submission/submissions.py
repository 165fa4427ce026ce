"""A run is submitted: its spec and its task are checked, and only then there is a run."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from coordinator.engine.state import RunSubmitted
from coordinator.events import Committed
from coordinator.runs import Runs, schedule_of
from coordinator.submission.checks import cautions
from coordinator.workers.task_jobs import TaskJobs


class Submissions:
    """Checks a submitted run and starts it."""

    def __init__(self, *, runs: Runs, tasks: TaskJobs) -> None:
        self._runs = runs
        self._tasks = tasks

    async def submit(self, event: RunSubmitted) -> Committed:
        """Raises `ConfigError` if the spec names what is not installed here or cannot be combined, `NotAllowedError`
        if its task may not be imported here, `TaskError` if importing it fails. What the spec is warned of is kept
        with the run. If the call is cancelled there is either the whole run or nothing of it."""
        schedule = await schedule_of(event.spec, event.spec_toml)
        await self._tasks.check_task(event.run_id, event.spec)
        try:
            told = await asyncio.to_thread(cautions, event.spec)
            event = replace(event, warnings=(*event.warnings, *told))
            return await self._runs.submit(event, schedule)
        finally:
            self._tasks.forget_unless_live(event.run_id)
