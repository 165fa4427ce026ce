"""A round aggregated once more from what is kept of it, with its own rule or with another, and compared.

The same computation as the round's own: with the round's own rule it makes the same model, to the byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.store import Store
from coordinator.update_bases import UpdateBases, kept_beside
from exchange.job import AggregationJob, AggregationResult, UpdateInput
from muster.errors import MusterError, NotFoundError, StateError
from muster.files.blobs import BlobStore
from muster.spec.model import AggregationTable, RunSpec

if TYPE_CHECKING:
    from exchange.comparison import Comparison


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A round computed again, beside the version that it committed."""

    table: AggregationTable
    result: AggregationResult
    committed_digest: str
    comparison: Comparison

    @property
    def reproduced(self) -> bool:
        return self.result.model_digest == self.committed_digest


def _aggregate_and_compare(
    job: AggregationJob, blobs: BlobStore, committed: str
) -> tuple[AggregationResult, Comparison]:
    """In one thread, which tidies up behind itself even if nobody waits for it any more."""
    from exchange.aggregation import aggregate
    from exchange.comparison import compare

    try:
        for digest in kept_beside(job.updates).union(path.name for path in (job.base, *job.states.values())):
            blobs.verify(digest)
        try:
            result = aggregate(job)
        except Exception:
            # Updates are verified as they are read: what went wrong may come of one that is lost or damaged.
            for update in job.updates:
                blobs.verify(update.digest)
            raise
        return result, compare(job.base, blobs.verify(committed), job.model_out)
    finally:
        for path in (job.model_out, *job.states_out.values()):
            path.unlink(missing_ok=True)


class Replays:
    """`executor` runs one replay after the other: rounds never wait for what somebody is curious about."""

    def __init__(
        self, *, store: Store, blobs: BlobStore, executor: Executor, updates_keep_rounds: int
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._executor = executor
        self._updates_keep_rounds = updates_keep_rounds

    async def replay(self, run_id: str, number: int, changes: Mapping[str, Any]) -> Replayed:
        """`changes` are those to the run spec's aggregation table.

        Raises `NotFoundError`, `StateError` where the round made no model or what it needs is kept no longer,
        `ConfigError` where the rule cannot be had.
        """
        from exchange import recipe

        job, committed = await self._job(run_id, number)
        spec = recipe.changed(job.spec, changes)
        places = self._places(replace(job, spec=spec))
        try:
            result, comparison = await asyncio.get_running_loop().run_in_executor(
                self._executor, _aggregate_and_compare, places, self._blobs, committed
            )
        except recipe.AggregationRefused as refusal:
            raise StateError(
                "replay.refused", f"round {number} cannot be aggregated so: {refusal}"
            ) from refusal
        except (OSError, MusterError):
            await self._job(run_id, number)  # if the files went meanwhile, it says so
            raise
        return Replayed(
            table=spec.aggregation, result=result, committed_digest=committed, comparison=comparison
        )

    async def _job(self, run_id: str, number: int) -> tuple[AggregationJob, str]:
        """The round's own job, without places for its results, and the digest of the version that it made."""
        store, blobs = self._store, self._blobs
        run = await store.run(run_id)
        row = await store.round(run_id, number)
        if run is None or row is None:
            raise NotFoundError(
                "round.not_found", f"run {run_id!r} has no round {number}", fix=f"muster round list {run_id}"
            )
        if row.state != "COMMITTED":
            raise StateError(
                "replay.no_model", f"round {number} is {row.state}: it made no model to compare with"
            )
        delivered = await store.folded(run_id, number)
        base = await store.model(run_id, version=(row.model_version or 0) - 1)  # the newest when it closed
        if base is None:
            raise AssertionError(f"round {number} of run {run_id} is committed and has moved no version")
        states = await store.optimizer_states(run_id, base.version)
        digests = {
            "its base version": [base.digest],
            "the version it made": [row.model_digest],
            "its updates": [a.digest for a in delivered],
            "the server's state before it": list(states.values()),
        }
        for what, needed in digests.items():
            if not all(map(blobs.has, needed)):
                raise StateError(
                    "replay.pruned",
                    f"round {number} cannot be replayed: {what} are kept no longer",
                    cause="of each run the updates of so many ended rounds are kept (coordinator.updates_keep_rounds): "
                    f"{self._updates_keep_rounds}",
                    fix=f"the newest can be: muster round replay {run_id}; to keep more of the next run: "
                    "muster serve --set coordinator.updates_keep_rounds=20",
                )
        spec = RunSpec.from_json(run.spec_json)
        bases = UpdateBases(store, blobs, run_id, spec)
        weights: dict[str, float] = {}
        if row.fold is not None and row.fold.weights is not None:
            weights = dict(zip(row.fold.updates, row.fold.weights, strict=True))
        job = AggregationJob(
            spec=spec,
            base=blobs.path(base.digest),
            updates=[
                UpdateInput(
                    assignment_id=a.assignment_id,
                    peer_id=a.peer_id,
                    path=blobs.path(a.digest),
                    examples=a.examples,
                    digest=a.digest,
                    base=await bases.of(a.peer_id, version=a.work.base, round=a.round),
                    role=a.work.role,
                    weight=weights.get(a.assignment_id),
                )
                for a in sorted(delivered, key=lambda a: (a.peer_id, a.round))
            ],
            states={name: blobs.path(digest) for name, digest in states.items()},
            base_version=base.version,
            base_digest=base.digest,
            round=number,
            cohort=len(row.cohort),
            model_out=Path(),
            states_out={},
        )
        return job, row.model_digest

    def _places(self, job: AggregationJob) -> AggregationJob:
        from exchange.aggregation import state_names

        names = state_names(job.spec, job.updates, cohort=job.cohort, base_version=job.base_version)
        return replace(
            job,
            model_out=self._blobs.temporary(),
            states_out={name: self._blobs.temporary() for name in names},
        )
