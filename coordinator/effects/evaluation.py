"""The effect `EvaluateOwn`: a version is evaluated on the coordinator's own data."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.effects.texts import format_error, format_traceback
from coordinator.engine.state import EvaluateOwn, OwnEvaluated, OwnPreparing
from coordinator.repairs import Repairs
from coordinator.runs import Runs
from coordinator.workers.task_jobs import TaskJobs
from muster.errors import MusterError


class OwnEvaluation:
    """Evaluates versions on the coordinator's own data, in a worker."""

    def __init__(self, *, runs: Runs, repairs: Repairs, tasks: TaskJobs) -> None:
        self._runs = runs
        self._repairs = repairs
        self._tasks = tasks

    async def evaluate(self, effect: EvaluateOwn) -> None:
        run = self._runs.get(effect.run_id)
        if run is None:
            return
        run_id, version = run.run_id, effect.model.version
        metrics: dict[str, float] = {}
        warnings: Sequence[str] = ()
        told = traceback = sources = ""
        try:
            path = await self._repairs.model(run_id, effect.model.digest, effect.model.size_bytes)
            if not await self._tasks.is_ready(run_id, run.spec):  # its worker is new
                await self._runs.post_surely(OwnPreparing(run_id=run_id, version=version, done=False))
                await self._tasks.get_ready(run_id, run.spec, path, tries=False)
                await self._runs.post_surely(OwnPreparing(run_id=run_id, version=version, done=True))
            found = await self._tasks.evaluate(run_id, run.spec, path)
            metrics, warnings, sources = found["metrics"], found["warnings"], found["source_digest"]
        except MusterError as error:
            told, traceback = format_error(error), format_traceback(error)
        await self._runs.post_surely(
            OwnEvaluated(
                run_id=run_id,
                version=version,
                metrics=metrics,
                warnings=tuple(warnings),
                error=told,
                traceback=traceback,
                source_digest=sources,
            )
        )
