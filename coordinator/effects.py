"""Carrying out effects: the initial model, aggregation, evaluation, and what to keep on disk.

Each effect is idempotent: asked twice while under way it starts once; asked again after a restart it does the same
work over and the engine ignores a result that it has already.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from coordinator.engine import evaluations
from coordinator.engine.state import (
    Aggregate,
    Aggregated,
    AggregationSkipped,
    Decision,
    Effect,
    EvaluateOwn,
    ModelFailed,
    ModelReady,
    ModelVersion,
    OwnEvaluated,
    OwnPreparing,
    PrepareModel,
    RunState,
    Treatment,
)
from coordinator.submission.permits import task_args
from coordinator.update_bases import UpdateBases, kept_beside
from coordinator.workers.workers import RunWorkers
from muster.config.settings import CoordinatorConfig
from muster.errors import MusterError, StorageError, TaskError, TransferError
from muster.files.blobs import LOST
from muster.runtime import clock, cores
from muster.spec.model import RunSpec
from muster.task.tracebacks import own_frame
from muster.texts import many_lines, one_line
from muster.worker.base import Worker
from muster.worker.environment import worker_environment
from muster.worker.handover import Handover
from muster.worker.host import WorkerHost
from muster.worker.user import check_reach, find_user

if TYPE_CHECKING:
    from coordinator.service import Coordinator
    from exchange.job import AggregationResult
    from muster.model.layout import ParameterLayout

log = structlog.get_logger()

SENTENCE_CHARS_MAX = 500  # how a rule treated one update
TASK_SECONDS_MAX = 600.0  # evaluating one version on the coordinator
TRIED = "the task was tried out on the coordinator's own data and does not work"
MODEL_SECONDS_MAX = 30.0  # drawing a model while somebody waits for the answer to a submission
IMPORT_SECONDS_MAX = 120.0  # importing a task's module, on a cold machine with all that it imports
STORAGE_RETRY_SECONDS = 2.0
STORAGE_SECONDS_MAX = 600.0  # a round that the disk does not let aggregate for so long is skipped
_SPOOL_SUFFIX = re.compile(r"\.part(\.header(\.tmp)?)?$")
WORKER_USER = "coordinator.worker_user"  # the setting
PRUNE_SECONDS = 2.0  # rounds that end within it share one look at what may go


class EffectRunner:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._under_way: set[tuple[object, ...]] = set()
        self._layouts: dict[str, ParameterLayout] = {}
        self._neighbours = cores.Slots()
        self._handover = _handover(coordinator.config)
        self._workers = RunWorkers(coordinator.make_worker or self._make_worker)
        # Held from a file's adoption until its row is committed, and while files are dropped: equal bytes of two runs
        # are one blob, which one run must not drop while the other is about to name it.
        self._files = asyncio.Lock()
        self._obstacles: dict[str, str] = {}  # run -> why its aggregation does not get on

    def obstacle(self, run_id: str) -> str:
        """Why the run's aggregation waits, in one sentence; "" where it does not."""
        return self._obstacles.get(run_id, "")

    def _make_worker(self) -> Worker:
        config = self._coordinator.config
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

    async def open(self) -> None:
        """Before the first job. Raises `ConfigError` where workers of another user could do nothing."""
        if self._handover is not None:
            await asyncio.to_thread(self._handover.open)
            folders = (*self._coordinator.config.task_folders, self._handover.folder / "any")
            await asyncio.to_thread(check_reach, self._handover.user, folders, WORKER_USER)

    async def close(self) -> None:
        await self._workers.close()

    def forget(self, run_id: str) -> None:
        """The run has ended, or there is none: its worker goes, whatever it is at."""
        self._workers.forget(run_id)

    def start(self, effect: Effect) -> None:
        match effect:
            case PrepareModel():
                self._once(("prepare", effect.run_id), self._prepare(effect))
            case Aggregate():
                self._once(("aggregate", effect.run_id, effect.round), self._aggregate(effect))
            case EvaluateOwn():
                self._once(("evaluate", effect.run_id, effect.model.version), self._evaluate(effect))
            case _:
                raise AssertionError(f"no way to carry out {type(effect).__name__}")

    def _once(self, key: tuple[object, ...], work: Coroutine[Any, Any, None]) -> None:
        if key in self._under_way:
            work.close()
            return
        self._under_way.add(key)

        async def guarded() -> None:
            try:
                await work
            finally:
                self._under_way.discard(key)

        self._coordinator.spawn(guarded())

    # -- the initial model --------------------------------------------------------------------------------------------

    async def _prepare(self, effect: PrepareModel) -> None:
        coordinator = self._coordinator
        run = coordinator.runs[effect.run_id]
        path = coordinator.blobs.temporary()
        trying = False
        try:
            seconds = run.spec.round.prepare_seconds
            made = await self._run_job("init_model", run, seconds=seconds, path=str(path))
            if evaluations.on_coordinator(run.spec):
                trying = True
                await self._get_ready(run, path, tries=True)
            model = ModelVersion(
                version=0,
                round=0,
                digest=made["digest"],
                size_bytes=made["size_bytes"],
                layout_digest=made["layout_digest"],
            )
            async with self._files:
                await coordinator.blobs.adopt(path, model.digest)
                await coordinator.post_surely(
                    ModelReady(run_id=run.run_id, model=model, source_digest=made["source_digest"])
                )
        except MusterError as error:
            await coordinator.post_surely(
                ModelFailed(
                    run_id=run.run_id,
                    error=_format_error(error),
                    what=TRIED if trying else ModelFailed.what,
                    traceback=_traceback(error),
                )
            )
        finally:
            path.unlink(missing_ok=True)

    async def _get_ready(self, run: RunState, path: Path, *, tries: bool) -> None:
        """Loads the coordinator's own data and, if so told, tries the task out on a batch of them."""
        algorithm = run.spec.train.algorithm if tries else ""
        seconds = run.spec.round.prepare_seconds
        await self._run_job("get_ready", run, seconds=seconds, path=str(path), algorithm=algorithm)

    async def _run_job(
        self, job: str, run: RunState, *, seconds: float = TASK_SECONDS_MAX, **args: Any
    ) -> dict[str, Any]:
        if self._handover is None or "path" not in args:
            return await self._work(job, run, seconds, args)
        with self._handover.exchange() as exchange:
            makes = job == "init_model"
            path = exchange.place(args["path"]) if makes else exchange.lend(args["path"])
            made = await self._work(job, run, seconds, {**args, "path": path})
            if makes:
                await exchange.take(args["path"])
            return made

    async def _work(self, job: str, run: RunState, seconds: float, args: Mapping[str, Any]) -> dict[str, Any]:
        run_id = run.run_id
        try:
            return await self._workers.run(
                run_id, job, {**self._task_args(run.spec), **args}, timeout_seconds=seconds
            )
        finally:
            if run_id not in self._coordinator.runs:  # it has ended meanwhile
                self.forget(run_id)

    def _task_args(self, spec: RunSpec) -> dict[str, Any]:
        return {
            **task_args(self._coordinator.config, spec.task),
            "options": dict(spec.task_options),
            "exchange": spec.exchange.model_dump(mode="json"),
            "seed": spec.seed,
            "threads": self._threads(),
        }

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

    # -- aggregation --------------------------------------------------------------------------------------------------

    async def _aggregate(self, effect: Aggregate) -> None:
        began = asyncio.get_running_loop().time()
        try:
            refusal = await self._try_to_aggregate(effect, began)
            while refusal is None:
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
                refusal = await self._try_to_aggregate(effect, began)
        finally:
            self._obstacles.pop(effect.run_id, None)
        if refusal:
            event = AggregationSkipped(
                run_id=effect.run_id, round=effect.round, reason_given=one_line(refusal)
            )
            await self._coordinator.post_surely(event)

    async def _try_to_aggregate(self, effect: Aggregate, began: float) -> str | None:
        """Why the round makes no version, or "" if it has made one, or None if it may be tried again."""
        from exchange.recipe import AggregationRefused

        try:
            await self._aggregate_once(effect)
        except AggregationRefused as refusal:
            return str(refusal)
        except (StorageError, OSError) as error:
            log.warning("aggregation.storage", run_id=effect.run_id, round=effect.round, reason=str(error))
            told = str(error)
            if isinstance(error, StorageError) and error.id in LOST:
                return f"the coordinator has lost a file that it needs: {told}"
            if asyncio.get_running_loop().time() - began >= STORAGE_SECONDS_MAX:
                return f"the coordinator's storage has refused for {STORAGE_SECONDS_MAX:g} s: {told}"
            # Nothing is lost: the round stays AGGREGATING and goes on when there is room again.
            self._obstacles[effect.run_id] = (
                f"the aggregation of round {effect.round} waits for storage: {told}"
            )
            return None
        except (
            Exception
        ) as error:  # a rule may be anybody's plug-in: its failure costs the round, not the run
            log.exception("aggregation.failed", run_id=effect.run_id, round=effect.round)
            return f"aggregation failed: {type(error).__name__}: {error}"
        return ""

    async def _aggregate_once(self, effect: Aggregate) -> None:
        from exchange import aggregation
        from exchange.job import AggregationJob, UpdateInput

        coordinator = self._coordinator
        blobs = coordinator.blobs
        run = coordinator.runs.get(effect.run_id)
        if run is None:
            return
        states = await coordinator.store.optimizer_states(effect.run_id, effect.base.version)
        bases = UpdateBases(coordinator.store, blobs, run.run_id, run.spec)
        updates = [
            UpdateInput(
                assignment_id=assignment.assignment_id,
                peer_id=assignment.peer_id,
                path=blobs.path(assignment.update.digest),
                examples=assignment.update.examples,
                base=await bases.of(assignment.peer_id, version=assignment.work.base, round=assignment.round),
                role=assignment.work.role,
            )
            for assignment in effect.updates
            if assignment.update is not None
        ]
        cohort = len(run.rounds[effect.round].cohort)
        names = aggregation.state_names(run.spec, updates, cohort=cohort, base_version=effect.base.version)
        await coordinator.repairs.model(run.run_id, effect.base.digest, effect.base.size_bytes, afresh=True)
        beside = [*kept_beside(updates).union(states.values()), *(update.path.name for update in updates)]
        await asyncio.gather(*(blobs.verified(digest, afresh=True) for digest in beside))
        model_out = blobs.temporary()
        states_out = {name: blobs.temporary() for name in names}
        job = AggregationJob(
            spec=run.spec,
            base=blobs.path(effect.base.digest),
            updates=updates,
            cohort=cohort,
            states={name: blobs.path(digest) for name, digest in states.items()},
            base_version=effect.base.version,
            base_digest=effect.base.digest,
            round=effect.round,
            model_out=model_out,
            states_out=states_out,
        )
        try:
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(coordinator.aggregations, aggregation.aggregate, job)
            async with self._files:
                await blobs.adopt(model_out, result.model_digest)
                for name, digest in result.state_digests.items():
                    await blobs.adopt(states_out[name], digest)
                await coordinator.post_surely(_aggregated(effect, result, states))
        finally:
            for path in (model_out, *states_out.values()):
                path.unlink(missing_ok=True)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    async def _evaluate(self, effect: EvaluateOwn) -> None:
        coordinator = self._coordinator
        run = coordinator.runs.get(effect.run_id)
        if run is None:
            return
        metrics: dict[str, float] = {}
        warnings: Sequence[str] = ()
        told = traceback = sources = ""
        try:
            model = effect.model
            path = await coordinator.repairs.model(run.run_id, model.digest, model.size_bytes)
            if not (await self._run_job("is_ready", run))["ready"]:  # its worker is new
                version = model.version
                await coordinator.post_surely(OwnPreparing(run_id=run.run_id, version=version, done=False))
                await self._get_ready(run, path, tries=False)
                await coordinator.post_surely(OwnPreparing(run_id=run.run_id, version=version, done=True))
            found = await self._run_job("evaluate", run, path=str(path))
            metrics, warnings, sources = found["metrics"], found["warnings"], found["source_digest"]
        except MusterError as error:
            told, traceback = _format_error(error), _traceback(error)
        await coordinator.post_surely(
            OwnEvaluated(
                run_id=run.run_id,
                version=effect.model.version,
                metrics=metrics,
                warnings=tuple(warnings),
                error=told,
                traceback=traceback,
                source_digest=sources,
            )
        )

    # -- what lies on disk --------------------------------------------------------------------------------------------

    async def layout(self, run: RunState) -> ParameterLayout:
        """The run's parameter layout, read once from a model file's header. Raises `StorageError` if it is lost."""
        model = run.model
        if model is None:
            raise AssertionError(f"run {run.run_id} has no model yet")
        found = self._layouts.get(model.layout_digest)
        if found is None:
            path = self._coordinator.blobs.path(model.digest)
            found = await asyncio.to_thread(_layout, path)
            if found is None or found.digest != model.layout_digest:
                path = await self._coordinator.repairs.model(run.run_id, model.digest, model.size_bytes)
                found = await asyncio.to_thread(_layout, path)
            if found is None:
                raise AssertionError(f"{path} has the right bytes and no layout")
            self._layouts[model.layout_digest] = found
        return found

    def observe(self, decision: Decision) -> None:
        """After a commit: drops what no round, replay or restart can ask for again."""
        kinds = {transition.kind for transition in decision.transitions}
        if decision.state.status.ended:
            self.forget(decision.state.run_id)
        if kinds & {"round.committed", "round.skipped", "run.finished", "run.failed", "run.cancelled"}:
            self._once(("prune",), self._prune())

    async def _prune(self) -> None:
        coordinator = self._coordinator
        await asyncio.sleep(PRUNE_SECONDS)
        async with self._files:
            gone = await coordinator.store.unneeded_blobs(
                updates_keep_rounds=coordinator.config.updates_keep_rounds,
                models_keep=coordinator.config.models_keep,
                ended_runs_keep=coordinator.config.ended_runs_keep,
            )
            await coordinator.store.forget_blobs(gone, fence=coordinator.journal.fence)
            self._sweep_spool()
            for digest in gone:
                await asyncio.to_thread(coordinator.blobs.remove, digest)

    async def remove_run(self, run_id: str) -> None:
        """Forgets a run that has ended, with its files. Raises `NotFoundError`, `StateError` "run.live"."""
        coordinator = self._coordinator
        async with self._files:
            now = clock.now()
            gone = await coordinator.store.remove_run(
                run_id, now, f"run {run_id} was removed on request", fence=coordinator.journal.fence
            )
            for digest in gone:
                await asyncio.to_thread(coordinator.blobs.remove, digest)
        log.info("run.removed", run_id=run_id, files=len(gone))

    async def sweep(self) -> None:
        """At start: what a kill left behind between a file's rename and its row."""
        coordinator = self._coordinator
        keep = await coordinator.store.live_blobs()
        await asyncio.to_thread(coordinator.blobs.sweep, keep)
        self._sweep_spool()

    def _sweep_spool(self) -> None:
        """Uploads of assignments that are over."""
        coordinator = self._coordinator
        live = {
            assignment.assignment_id
            for run in coordinator.runs.values()
            for round_state in run.rounds.values()
            for assignment in round_state.assignments.values()
            if not assignment.status.ended
        }
        for path in coordinator.spool.iterdir():
            if _SPOOL_SUFFIX.sub("", path.name) not in live:
                path.unlink(missing_ok=True)


def _handover(config: CoordinatorConfig) -> Handover | None:
    if config.worker_user is None:
        return None
    return Handover(Path(config.data_dir), find_user(config.worker_user, WORKER_USER))


def _layout(path: Path) -> ParameterLayout | None:
    """None where the file is gone or is no model version."""
    from muster.model.modelfile import ModelFile

    try:
        file = ModelFile(path)
    except (OSError, TransferError):
        return None
    file.close()
    return file.layout


def _aggregated(effect: Aggregate, result: AggregationResult, before: Mapping[str, str]) -> Aggregated:
    """`before` are the states at the base version: those that the round did not touch stay as they are."""
    return Aggregated(
        run_id=effect.run_id,
        round=effect.round,
        model=ModelVersion(
            version=effect.base.version + 1,
            round=effect.round,
            digest=result.model_digest,
            size_bytes=result.model_bytes,
            layout_digest=effect.base.layout_digest,
        ),
        treatments=tuple(
            Treatment(
                assignment_id=treated.assignment_id,
                weight=treated.weight,
                score=treated.score,
                selected=treated.selected,
                sentence=one_line(treated.sentence, SENTENCE_CHARS_MAX),
            )
            for treated in result.treatments
        ),
        seconds=result.seconds,
        how=one_line(result.reason),
        warnings=result.warnings,
        states={**before, **result.state_digests},
    )


def _format_error(error: MusterError) -> str:
    """In one line, with the place in the task that it came from."""
    place = own_frame(error.fields.get("traceback", ""))
    known = place in f"{error.message} {error.cause}"  # "" is in everything
    parts = [error.message, "" if known else f"at {place}", error.cause and f"cause: {error.cause}"]
    return one_line("; ".join(filter(None, [*parts, error.fix and f"fix: {error.fix}"])))


def _traceback(error: MusterError) -> str:
    return many_lines(error.fields.get("traceback", ""), keep="end")
