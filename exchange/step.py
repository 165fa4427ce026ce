"""The second pass of an aggregation: reduce, check, take the server's step, write, chunk by chunk."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

import aggregators
import compressors
from compressors.core.replay import TERMS_MAX
from exchange import downlink, links, mechanisms, optimizers
from exchange.contexts import ChunkContexts
from exchange.decoded import Decoded
from exchange.factors import CommonFactor, NextFactor
from exchange.job import AggregationJob
from exchange.kept import KeptRows
from exchange.names import DELTA, FACTOR, SCALE
from exchange.payload import BlobInfo
from exchange.recipe import AggregationRefused
from exchange.reduction import Reduction
from exchange.statefile import StateReader, StateWriter
from muster.model.finite import all_finite
from muster.model.layout import BUFFERS, CHUNK_COORDINATES, COUNTERS, PARAMS, Column
from muster.model.modelfile import ModelFile, ModelWriter


def apply(
    job: AggregationJob, base: ModelFile, source: Decoded, plan: aggregators.Plan
) -> tuple[BlobInfo, dict[str, str]]:
    """Gives the model file's facts and the state files' digests. Raises `AggregationRefused`, `StorageError`."""
    with ExitStack() as stack:
        step = _Step(job, base, source, plan, stack)
        for column in source.layout.columns:
            if column.group == PARAMS:
                step.take(column)
            else:
                step.take_buffers(column)
        for index in range(source.counter_chunks()):
            step.take_counters(index)
        return step.finish()


class _Step:
    """One version's files, which `stack` closes."""

    def __init__(
        self,
        job: AggregationJob,
        base: ModelFile,
        source: Decoded,
        plan: aggregators.Plan,
        stack: ExitStack,
    ) -> None:
        layout, spec = base.layout, job.spec
        self._base, self._source = base, source
        self._optimizer = optimizers.build(
            spec.server,
            version=job.base_version,
            warming_up=job.base_version < spec.compression.warm_up_rounds,
        )
        self._shares = [spec.server.lr * float(weight) for weight in plan.weights]
        self._down = _downlink(job, source, plan)
        self._factor: NextFactor | None = None
        if links.shares_factor(spec):
            up = compressors.build(spec.compression.up)
            present = CommonFactor(up, layout, job.base_version, job.states.get(FACTOR))
            stack.callback(present.close)
            contexts = ChunkContexts(layout=layout, base_digest=job.base_digest, round=job.round)
            self._factor = NextFactor(present, contexts, job.states_out[FACTOR])
        names = (*self._optimizer.state_names, *downlink.state_names(spec, job.base_version))
        self._readers = {name: StateReader(job.states.get(name), layout.size) for name in names}
        self._writers = {name: StateWriter(job.states_out[name]) for name in names}
        self._kept = KeptRows(spec, job.updates, source, plan, job.states_out)
        stack.callback(self._kept.close)
        self._model = ModelWriter(job.model_out, layout, base.fixed)
        for file in (*self._readers.values(), *self._writers.values(), self._down, self._factor, self._model):
            if file is not None:
                stack.callback(file.close)
        width = min(CHUNK_COORDINATES, layout.columns_size)
        watch = self._kept.take if self._kept.needed else None
        opening = mechanisms.opening(spec, job.updates, plan, job.cohort)
        self._reduction = Reduction(spec, base, source, plan, cohort=job.cohort, opening=opening, watch=watch)
        self._moved = torch.empty(width)

    def take(self, column: Column) -> None:
        """The server's step along a column of parameters."""
        start, width = column.start, column.stop - column.start
        base, new = self._base.vector[start : start + width], self._moved[:width]
        delta = self._reduction.params(column)
        state = {name: reader.read(start, start + width) for name, reader in self._readers.items()}
        scale = self._optimizer.step(base, delta, state, new)
        if not all_finite(new) and bool((~new.isfinite() & base.isfinite()).any()):  # before a codec sees it
            raise AggregationRefused("the aggregate or the server's step gives values that are not finite")
        if scale is not None and SCALE in state:  # for the peers: the downlink leaves it out of the step
            state[SCALE].copy_(scale)
        if isinstance(self._down, downlink.Replayed):
            self._down.take(base, new, self._source.terms(column.index, self._shares))
        elif self._down is not None:
            self._down.take(base, new, state)
        if self._factor is not None:
            self._factor.take(base, new)
        self._model.write_chunk(column.index, new)
        for name, values in state.items():
            self._writers[name].write(values)

    def take_buffers(self, column: Column) -> None:
        """A column of buffers, which no optimizer moves."""
        self._write_beside(column.index, self._reduction.buffers(column), BUFFERS)

    def take_counters(self, index: int) -> None:
        """A chunk of counters."""
        self._write_beside(index, self._reduction.counters(index), COUNTERS)

    def _write_beside(self, index: int, new: Tensor, group: str) -> None:
        if self._down is not None:
            self._down.take_beside(group, new)
        self._model.write_chunk(index, new, group)

    def finish(self) -> tuple[BlobInfo, dict[str, str]]:
        digests = {name: writer.finish() for name, writer in self._writers.items()} | self._kept.finish()
        if self._down is not None:
            digests[DELTA] = self._down.finish()
        if self._factor is not None:
            digests[FACTOR] = self._factor.finish()
        return self._model.finish(), digests


def _downlink(
    job: AggregationJob, source: Decoded, plan: aggregators.Plan
) -> downlink.Downlink | downlink.Replayed | None:
    if not downlink.compresses(job.spec):
        return None
    layout, out = source.layout, job.states_out[DELTA]
    if not downlink.replays(job.spec):
        return downlink.Downlink(
            job.spec,
            layout,
            out,
            base_digest=job.base_digest,
            round=job.round,
            base_version=job.base_version,
        )
    if not plan.linear:
        raise AggregationRefused(
            f"{job.spec.aggregation.rule} made no weighted sum, and only that is replayed"
        )
    if plan.weights.count_nonzero() > TERMS_MAX:
        raise AggregationRefused(f"a step of more than {TERMS_MAX} updates is not replayed")
    if any((update.base.digest, update.base.round) != (job.base_digest, job.round) for update in job.updates):
        raise AggregationRefused("a step of updates against an older version is not replayed")
    up = source.readers[0].manifest.codec_of(PARAMS)
    return downlink.Replayed(up, layout, out, base_digest=job.base_digest, round=job.round)
