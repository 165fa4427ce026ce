"""The second pass of an aggregation: reduce, check, take the server's step, write, chunk by chunk."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

import aggregators
import compressors
from compressors.core.replay import TERMS_MAX
from exchange import downlink, links, optimizers, recipe, untrained
from exchange.contexts import ChunkContexts
from exchange.decoded import Decoded
from exchange.factors import CommonFactor, NextFactor
from exchange.job import AggregationJob
from exchange.names import DELTA, FACTOR, SCALE
from exchange.payload import BlobInfo
from exchange.recipe import AggregationRefused
from exchange.statefile import StateReader, StateWriter
from muster.model.finite import all_finite
from muster.model.layout import BUFFERS, CHUNK_COORDINATES, COUNTERS, PARAMS
from muster.model.modelfile import ModelFile, ModelWriter


def apply(
    job: AggregationJob, base: ModelFile, source: Decoded, plan: aggregators.Plan
) -> tuple[BlobInfo, dict[str, str]]:
    """Gives the model file's facts and the state files' digests. Raises `AggregationRefused`, `StorageError`."""
    with ExitStack() as stack:
        step = _Step(job, base, source, plan, stack)
        for start, chunk in source.chunks():
            if start < source.layout.size:
                step.take(start, chunk)
            else:
                step.take_buffers(start, chunk)
        for index, values in source.counters():
            step.take_counters(index, values)
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
        self._base, self._source, self._plan = base, source, plan
        self._optimizer = optimizers.build(
            spec.server,
            version=job.base_version,
            warming_up=job.base_version < spec.compression.warm_up_rounds,
        )
        self._shares = [spec.server.lr * float(weight) for weight in plan.weights]
        self._down = _downlink(job, source, plan)
        self._factor: NextFactor | None = None
        if spec.compression.common_factor:
            up = compressors.build(spec.compression.up)
            present = CommonFactor(up, layout, job.base_version, job.states.get(FACTOR))
            stack.callback(present.close)
            contexts = ChunkContexts(layout=layout, base_digest=job.base_digest, round=job.round)
            self._factor = NextFactor(present, contexts, job.states_out[FACTOR])
        names = (*self._optimizer.state_names, *downlink.state_names(spec, job.base_version))
        self._learnt: tuple[str, ...] = ()
        if links.sends_differences(spec):
            self._learnt = tuple(links.state_name(update.peer_id) for update in job.updates)
        self._readers = {name: StateReader(job.states.get(name), layout.size) for name in names}
        kept = (*names, *self._learnt, *source.kept)
        self._writers = {name: StateWriter(job.states_out[name]) for name in kept}
        self._model = ModelWriter(job.model_out, layout, base.fixed)
        for file in (*self._readers.values(), *self._writers.values(), self._down, self._factor, self._model):
            if file is not None:
                stack.callback(file.close)
        width = min(CHUNK_COORDINATES, layout.columns_size)
        self._faults = spec.faults_of(job.cohort)
        self._measures = recipe.pipeline(spec, job.cohort).rule.has_length
        self._delta, self._moved = torch.empty(width), torch.empty(width)
        self._following = torch.empty(len(source.kept) * width)

    def take(self, start: int, chunk: Tensor) -> None:
        """The decoded updates [n + kept, c] of the chunk that begins at `start`."""
        width = chunk.shape[1]
        base = self._base.vector[start : start + width]
        delta, new = self._delta[:width], self._moved[:width]
        self._plan.reduce(chunk, delta)
        state = {name: reader.read(start, start + width) for name, reader in self._readers.items()}
        scale = self._optimizer.step(base, delta, state, new)
        if not all_finite(new) and bool((~new.isfinite() & base.isfinite()).any()):  # before a codec sees it
            raise AggregationRefused("the aggregate or the server's step gives values that are not finite")
        if scale is not None and SCALE in state:  # for the peers: the downlink leaves it out of the step
            state[SCALE].copy_(scale)
        if isinstance(self._down, downlink.Replayed):
            self._down.take(base, new, self._source.terms(start, self._shares))
        elif self._down is not None:
            self._down.take(base, new, state)
        if self._factor is not None:
            self._factor.take(base, new)
        self._model.write_chunk(start // CHUNK_COORDINATES, new)
        if self._learnt:
            state |= zip(self._learnt, self._source.following(start, chunk), strict=True)
        if self._source.kept:
            state |= self._advanced(chunk)
        for name, values in state.items():
            self._writers[name].write(values)

    def take_buffers(self, start: int, chunk: Tensor) -> None:
        """The decoded updates [n + kept, c] of the chunk of buffers that begins there, parameters counted."""
        at, width = start - self._base.layout.size, chunk.shape[1]
        base = self._base.buffers[at : at + width]
        delta, new = self._delta[:width], self._moved[:width]
        updates = chunk[: len(chunk) - len(self._source.kept)]
        if self._measures:
            self._plan.reduce(chunk, delta)
        else:  # a statistic does not move by a unit in a direction
            delta.copy_(updates.median(0).values)
        place = untrained.Chunk(self._base.layout.groups[BUFFERS], at // CHUNK_COORDINATES, self._faults)
        untrained.move_buffers(place, base, updates, delta, new)
        if bool((~new.isfinite() & base.isfinite()).any()):
            raise AggregationRefused("the aggregate gives buffers that are not finite")
        self._write_beside(place.index, new, BUFFERS)
        if self._source.kept:
            for name, values in self._advanced(chunk).items():
                self._writers[name].write(values)

    def take_counters(self, index: int, updates: Tensor) -> None:
        """The updates' values [n, c] of a chunk of counters."""
        place = untrained.Chunk(self._base.layout.groups[COUNTERS], index, self._faults)
        self._write_beside(index, untrained.move_counters(place, updates), COUNTERS)

    def _write_beside(self, index: int, new: Tensor, group: str) -> None:
        if self._down is not None:
            self._down.take_beside(group, new)
        self._model.write_chunk(index, new, group)

    def _advanced(self, chunk: Tensor) -> dict[str, Tensor]:
        """What the rule keeps of this chunk, [c] each."""
        width = chunk.shape[1]
        vectors = self._following[: len(self._source.kept) * width].view(-1, width)
        self._plan.advance(chunk, vectors)
        return dict(zip(self._source.kept, vectors, strict=True))

    def finish(self) -> tuple[BlobInfo, dict[str, str]]:
        digests = {name: writer.finish() for name, writer in self._writers.items()}
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
