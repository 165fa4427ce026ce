"""Jobs on a run's own code at the coordinator: checked at submission, then model, data and evaluation.

Each runs in a worker process of the run's, as the user of `coordinator.worker_user` where one is set.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from coordinator.events import Committed, Notice, RunLeft
from coordinator.submission.permits import task_args
from coordinator.workers.workers import RunWorkers
from muster.config.settings import CoordinatorConfig
from muster.errors import TaskError
from muster.runtime import cores
from muster.spec.model import RunSpec
from muster.worker.base import Worker
from muster.worker.environment import worker_environment
from muster.worker.handover import Handover
from muster.worker.host import WorkerHost
from muster.worker.user import check_reach, find_user

TASK_SECONDS_MAX = 600.0  # evaluating one version on the coordinator
MODEL_SECONDS_MAX = 30.0  # drawing a model while somebody waits for the answer to a submission
IMPORT_SECONDS_MAX = 120.0  # importing a task's module, on a cold machine with all that it imports
WORKER_USER = "coordinator.worker_user"  # the setting


class TaskJobs:
    """`live` has the ids of the runs that are live. `make_worker` gives what runs tasks' code, by default worker
    processes."""

    def __init__(
        self,
        *,
        config: CoordinatorConfig,
        live: Container[str],
        make_worker: Callable[[], Worker] | None = None,
    ) -> None:
        self._config = config
        self._live = live
        self._neighbours = cores.Slots()
        self._handover = _handover(config)
        self._workers = RunWorkers(make_worker or self._make_worker)

    async def open(self) -> None:
        """Before the first job. Raises `ConfigError` where workers of another user could do nothing."""
        if self._handover is not None:
            await asyncio.to_thread(self._handover.open)
            folders = (*self._config.task_folders, self._handover.folder / "any")
            await asyncio.to_thread(check_reach, self._handover.user, folders, WORKER_USER)

    async def close(self) -> None:
        await self._workers.close()

    def hear(self, notice: Notice) -> None:
        """Subscriber: the worker of a run that is over goes, whatever it is at."""
        match notice:
            case RunLeft(run_id=run_id):
                self._workers.forget(run_id)
            case Committed(run=run) if run is not None and run.status.ended:
                self._workers.forget(run.run_id)
            case Committed():
                pass

    # -- submission -------------------------------------------------------------------------------------------

    async def check_task(self, run_id: str, spec: RunSpec) -> None:
        """Raises `NotAllowedError`, `ConfigError` or `TaskError` if the spec's task may not be loaded here, or
        cannot be. What is loaded here is what the run then uses."""
        args = self._task_args(spec)
        try:
            await self._workers.run(
                run_id, "check_task", args, timeout_seconds=IMPORT_SECONDS_MAX, checks=True
            )
            await self._check_model(run_id, args)
        except BaseException:  # a cancelled call too: nothing of a run that there never was stays
            self._workers.forget(run_id)
            raise

    async def _check_model(self, run_id: str, args: Mapping[str, Any]) -> None:
        """Raises what `coordinator.workers.jobs.check_model` does. A model that takes too long for whoever submits, and
        one whose own code fails, is drawn and checked when the run is prepared, which keeps the traceback with the
        run."""
        try:
            await self._workers.run(
                run_id, "check_model", args, timeout_seconds=MODEL_SECONDS_MAX, checks=True
            )
        except TaskError as error:
            if not error.id.startswith("worker."):
                raise

    def forget_unless_live(self, run_id: str) -> None:
        """The run may have ended, or never have come about, while something of it was loaded."""
        if run_id not in self._live:
            self._workers.forget(run_id)

    # -- jobs -------------------------------------------------------------------------------------------------

    async def init_model(self, run_id: str, spec: RunSpec, path: Path) -> dict[str, Any]:
        """Draws version 0 into `path`."""
        return await self._run("init_model", run_id, spec, seconds=spec.round.prepare_seconds, path=str(path))

    async def get_ready(self, run_id: str, spec: RunSpec, path: Path, *, tries: bool) -> None:
        """Loads the coordinator's own data and, if so told, tries the task out on a batch of them."""
        algorithm = spec.train.algorithm if tries else ""
        seconds = spec.round.prepare_seconds
        await self._run("get_ready", run_id, spec, seconds=seconds, path=str(path), algorithm=algorithm)

    async def is_ready(self, run_id: str, spec: RunSpec) -> bool:
        """Whether the run's worker has its data loaded."""
        return bool((await self._run("is_ready", run_id, spec))["ready"])

    async def evaluate(self, run_id: str, spec: RunSpec, path: Path) -> dict[str, Any]:
        """Evaluates the version at `path` on the coordinator's own data."""
        return await self._run("evaluate", run_id, spec, path=str(path))

    async def _run(
        self, job: str, run_id: str, spec: RunSpec, *, seconds: float = TASK_SECONDS_MAX, **args: Any
    ) -> dict[str, Any]:
        if self._handover is None or "path" not in args:
            return await self._work(job, run_id, spec, seconds, args)
        with self._handover.exchange() as exchange:
            makes = job == "init_model"
            path = exchange.place(args["path"]) if makes else exchange.lend(args["path"])
            made = await self._work(job, run_id, spec, seconds, {**args, "path": path})
            if makes:
                await exchange.take(args["path"])
            return made

    async def _work(
        self, job: str, run_id: str, spec: RunSpec, seconds: float, args: Mapping[str, Any]
    ) -> dict[str, Any]:
        try:
            return await self._workers.run(
                run_id, job, {**self._task_args(spec), **args}, timeout_seconds=seconds
            )
        finally:
            self.forget_unless_live(run_id)

    def _task_args(self, spec: RunSpec) -> dict[str, Any]:
        return {
            **task_args(self._config, spec.task),
            "options": dict(spec.task_options),
            "exchange": spec.exchange.model_dump(mode="json"),
            "seed": spec.seed,
            "threads": self._threads(),
        }

    def _make_worker(self) -> Worker:
        config = self._config
        return WorkerHost(
            "coordinator.workers.jobs",
            label="coordinator",
            device="cpu",
            log_path=Path(config.data_dir) / "worker.log",
            environment=lambda: worker_environment(
                os.environ, more=config.worker_environment, threads=self._threads()
            ),
            user=None if self._handover is None else self._handover.user,
        )

    def _threads(self) -> int:
        """What the peers on this machine leave it: no more than each of them has."""
        said = cores.said_threads(os.environ)
        return said or cores.share(cores.usable_cores(), self._neighbours.count())


def _handover(config: CoordinatorConfig) -> Handover | None:
    if config.worker_user is None:
        return None
    return Handover(Path(config.data_dir), find_user(config.worker_user, WORKER_USER))
