"""The effect `Aggregate`: a round's updates become the next version, or the round says why not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import structlog

from coordinator.engine.state import Aggregate, Aggregated, AggregationSkipped, ModelVersion, Treatment
from coordinator.repairs import Repairs
from coordinator.runs import Runs
from coordinator.store import Store
from coordinator.update_bases import UpdateBases, kept_beside
from muster.errors import StorageError
from muster.files.blobs import LOST, BlobStore
from muster.texts import one_line

if TYPE_CHECKING:
    from exchange.job import AggregationResult

log = structlog.get_logger()

SENTENCE_CHARS_MAX = 500  # how a rule treated one update
STORAGE_RETRY_SECONDS = 2.0
STORAGE_SECONDS_MAX = 600.0  # a round that the disk does not let aggregate for so long is skipped


class RoundAggregation:
    """`files` is held from a file's adoption until its row is committed, see `coordinator.retention`."""

    def __init__(
        self,
        *,
        runs: Runs,
        store: Store,
        blobs: BlobStore,
        repairs: Repairs,
        executor: Executor,
        files: asyncio.Lock,
    ) -> None:
        self._runs = runs
        self._store = store
        self._blobs = blobs
        self._repairs = repairs
        self._executor = executor
        self._files = files
        self._obstacles: dict[str, str] = {}  # run -> why its aggregation does not get on

    def obstacle(self, run_id: str) -> str:
        """Why the run's aggregation waits, in one sentence; "" where it does not."""
        return self._obstacles.get(run_id, "")

    async def aggregate(self, effect: Aggregate) -> None:
        began = asyncio.get_running_loop().time()
        try:
            refusal = await self._try(effect, began)
            while refusal is None:
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
                refusal = await self._try(effect, began)
        finally:
            self._obstacles.pop(effect.run_id, None)
        if refusal:
            event = AggregationSkipped(
                run_id=effect.run_id, round=effect.round, reason_given=one_line(refusal)
            )
            await self._runs.post_surely(event)

    async def _try(self, effect: Aggregate, began: float) -> str | None:
        """Why the round makes no version, or "" if it has made one, or None if it may be tried again."""
        from exchange.recipe import AggregationRefused

        try:
            await self._once(effect)
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

    async def _once(self, effect: Aggregate) -> None:
        from exchange import aggregation
        from exchange.job import AggregationJob, UpdateInput

        blobs = self._blobs
        run = self._runs.get(effect.run_id)
        if run is None:
            return
        states = await self._store.optimizer_states(effect.run_id, effect.base.version)
        weights = effect.weights or (None,) * len(effect.updates)
        bases = UpdateBases(self._store, blobs, run.run_id, run.spec)
        updates = [
            UpdateInput(
                assignment_id=assignment.assignment_id,
                peer_id=assignment.peer_id,
                path=blobs.path(assignment.update.digest),
                examples=assignment.update.examples,
                base=await bases.of(assignment.peer_id, version=assignment.work.base, round=assignment.round),
                role=assignment.work.role,
                weight=weight,
                digest=assignment.update.digest,
            )
            for assignment, weight in zip(effect.updates, weights, strict=True)
            if assignment.update is not None
        ]
        cohort = len(run.rounds[effect.round].cohort)
        names = aggregation.state_names(run.spec, updates, cohort=cohort, base_version=effect.base.version)
        await self._repairs.model(run.run_id, effect.base.digest, effect.base.size_bytes, afresh=True)
        beside = sorted(kept_beside(updates).union(states.values()))
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

            def timed() -> tuple[AggregationResult, float]:
                began = loop.time()
                return aggregation.aggregate(job), loop.time() - began

            try:
                result, seconds = await loop.run_in_executor(self._executor, timed)
            except Exception:
                # Updates are verified as they are read: what went wrong may come of one that is lost or damaged.
                await asyncio.gather(*(blobs.verified(update.digest, afresh=True) for update in updates))
                raise
            async with self._files:
                await blobs.adopt(model_out, result.model_digest)
                for name, digest in result.state_digests.items():
                    await blobs.adopt(states_out[name], digest)
                await self._runs.post_surely(_aggregated(effect, result, seconds, states))
        finally:
            for path in (model_out, *states_out.values()):
                path.unlink(missing_ok=True)


def _aggregated(
    effect: Aggregate, result: AggregationResult, seconds: float, before: Mapping[str, str]
) -> Aggregated:
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
        seconds=seconds,
        how=one_line(result.reason),
        warnings=result.warnings,
        states={**before, **result.state_digests},
    )
