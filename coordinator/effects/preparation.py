"""The effect `PrepareModel`: version 0 is drawn, and the task is tried out where the coordinator has data for it."""

from __future__ import annotations

import asyncio

from coordinator.effects.texts import format_error, format_traceback
from coordinator.engine import evaluations
from coordinator.engine.state import ModelFailed, ModelReady, ModelVersion, PrepareModel
from coordinator.runs import Runs
from coordinator.workers.task_jobs import TaskJobs
from muster.errors import MusterError
from muster.files.blobs import BlobStore

TRIED = "the task was tried out on the coordinator's own data and does not work"


class ModelPreparation:
    """`files` is held from a file's adoption until its row is committed, see `coordinator.retention`."""

    def __init__(self, *, runs: Runs, blobs: BlobStore, tasks: TaskJobs, files: asyncio.Lock) -> None:
        self._runs = runs
        self._blobs = blobs
        self._tasks = tasks
        self._files = files

    async def prepare(self, effect: PrepareModel) -> None:
        run = self._runs.get(effect.run_id)
        if run is None:  # it was ended before this began
            return
        path = self._blobs.temporary()
        trying = False
        try:
            made = await self._tasks.init_model(run.run_id, run.spec, path)
            if evaluations.on_coordinator(run.spec):
                trying = True
                await self._tasks.get_ready(run.run_id, run.spec, path, tries=True)
            model = ModelVersion(
                version=0,
                round=0,
                digest=made["digest"],
                size_bytes=made["size_bytes"],
                layout_digest=made["layout_digest"],
            )
            async with self._files:
                await self._blobs.adopt(path, model.digest)
                await self._runs.post_surely(
                    ModelReady(run_id=run.run_id, model=model, source_digest=made["source_digest"])
                )
        except MusterError as error:
            await self._runs.post_surely(
                ModelFailed(
                    run_id=run.run_id,
                    error=format_error(error),
                    what=TRIED if trying else ModelFailed.what,
                    traceback=format_traceback(error),
                )
            )
        finally:
            path.unlink(missing_ok=True)
