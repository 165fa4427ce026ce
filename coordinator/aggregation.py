"""One round's aggregation: geometry, then one pass, then the server's step, in bounded memory.

Reads mapped update files chunk by chunk (n x chunk in memory), at most twice, and writes the new model version and the
optimizer's state chunk by chunk. A pure function of its inputs with a fixed order of reduction: run again after a
crash it writes the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import aggregators
from compressors.replay import Term
from coordinator import downlink, links, optimizers, recipe
from coordinator.statefile import StateReader, StateWriter
from coordinator.store.tables import DELTA, SCALE
from muster.finite import all_finite
from muster.layout import CHUNK_COORDINATES, ParameterLayout
from muster.modelfile import ModelFile, ModelWriter
from muster.payload import BlobInfo, PayloadReader
from muster.seeds import derive_seed
from muster.spec.model import RunSpec


class AggregationRefused(Exception):
    """The round cannot be aggregated: the rule's bound does not hold, or the result is not finite."""


@dataclass(frozen=True, kw_only=True)
class UpdateInput:
    assignment_id: str
    peer_id: str
    path: Path
    examples: int


@dataclass(frozen=True, kw_only=True)
class AggregationJob:
    """`updates` are sorted by peer id; `states` maps the optimizer's state names to files (absent: zeros)."""

    spec: RunSpec
    base: Path
    updates: Sequence[UpdateInput]
    states: Mapping[str, Path]
    base_version: int
    base_digest: str
    round: int
    cohort: int  # how many peers were asked
    model_out: Path
    states_out: Mapping[str, Path]  # with a place for `DELTA`, if the downlink compresses


@dataclass(frozen=True, kw_only=True)
class Treated:
    assignment_id: str
    weight: float
    score: float
    selected: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class AggregationResult:
    model_digest: str
    model_bytes: int
    state_digests: Mapping[str, str]
    treatments: tuple[Treated, ...]
    reason: str
    seconds: float


def aggregate(job: AggregationJob) -> AggregationResult:
    """Runs in a thread of its own, off the event loop. Raises `AggregationRefused`, `StorageError`."""
    began = time.perf_counter()
    pipeline = recipe.pipeline(job.spec, job.cohort)
    peers = tuple(update.peer_id for update in job.updates)
    refusal = recipe.refuse(job.spec, len(peers), job.cohort) or recipe.missing_trusted(job.spec, peers)
    if refusal:
        raise AggregationRefused(refusal)
    with ExitStack() as stack:
        base = ModelFile(job.base)
        stack.callback(base.close)
        source = stack.enter_context(_decoded(job, pipeline, base.layout))
        plan = _decide(job, pipeline, source)
        model, states = _apply(job, base, source, plan)
    treatments = tuple(
        Treated(
            assignment_id=update.assignment_id,
            weight=float(plan.weights[i]),
            score=float(plan.scores[i]),
            selected=plan.selected[i],
            sentence=plan.treatment[i],
        )
        for i, update in enumerate(job.updates)
    )
    return AggregationResult(
        model_digest=model.digest,
        model_bytes=model.size_bytes,
        state_digests=states,
        treatments=treatments,
        reason="; ".join(filter(None, (plan.reason, job.spec.aggregation.faults_told(job.cohort)))),
        seconds=time.perf_counter() - began,
    )


def _decide(job: AggregationJob, pipeline: aggregators.Pipeline, source: _Decoded) -> aggregators.Plan:
    """The first pass, if the rule needs one."""
    trusted = job.spec.aggregation.trusted_peer
    survey = aggregators.Survey(
        pipeline,
        len(job.updates),
        source.layout.size,
        kept=len(source.kept),
        seed=derive_seed(job.spec.seed, "aggregation", job.round),
    )
    try:
        if survey.needed:
            for start, chunk in source.chunks():
                survey.add(start, chunk)
        return survey.plan(
            weights=_weights(job),
            trusted=next((i for i, u in enumerate(job.updates) if u.peer_id == trusted), None),
        )
    except aggregators.RuleError as error:
        raise AggregationRefused(str(error)) from error


def _weights(job: AggregationJob) -> Tensor | None:
    """Shares of a weighted mean: declared example counts, capped by the spec, since they are only the peers' word."""
    table = job.spec.aggregation
    if table.weights == "uniform":
        return None
    counts = [min(update.examples, table.examples_max) for update in job.updates]
    return torch.tensor(counts, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """The round's updates, and behind them the vectors that the rule keeps, as column chunks [n + kept, c].

    One scratch is used again and again.
    """

    layout: ParameterLayout
    links: Sequence[links.Link]
    readers: Sequence[PayloadReader]
    kept: Mapping[str, StateReader]  # by name
    scratch: Tensor  # flat [(n + kept) * chunk]

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        n, rows = len(self.readers), len(self.readers) + len(self.kept)
        for index in range(self.layout.chunk_count):
            start, stop = self.layout.chunk_bounds(index)
            chunk = self.scratch[: rows * (stop - start)].view(rows, stop - start)
            for row, reader, link in zip(chunk[:n], self.readers, self.links, strict=True):
                link.decode(reader.chunk("params", index), row, index)
            for row, vector in zip(chunk[n:], self.kept.values(), strict=True):
                row.copy_(vector.read(start, stop))
            yield start, chunk

    def following(self, start: int, chunk: Tensor) -> list[Tensor]:
        """What is held of each uplink after the round, of the chunk that begins there."""
        index = start // CHUNK_COORDINATES
        return [link.following(row, index) for link, row in zip(self.links, chunk, strict=False)]

    def terms(self, start: int, shares: Sequence[float]) -> list[Term]:
        """The bodies of the chunk that begins there, of the updates that have a share."""
        index = start // CHUNK_COORDINATES
        return [
            Term(share, link.places.facts(index)[1], reader.chunk("params", index))
            for share, link, reader in zip(shares, self.links, self.readers, strict=True)
            if share
        ]


@contextmanager
def _decoded(
    job: AggregationJob, pipeline: aggregators.Pipeline, layout: ParameterLayout
) -> Generator[_Decoded]:
    with ExitStack() as stack:
        kept: dict[str, StateReader] = {}
        for name in _kept_names(pipeline, job.updates):
            kept[name] = StateReader(job.states.get(name), layout.size)
            stack.callback(kept[name].close)
        readers: list[PayloadReader] = []
        uplinks: list[links.Link] = []
        for update in job.updates:
            reader = PayloadReader(update.path)
            stack.callback(reader.close)
            readers.append(reader)
            estimate = job.states.get(links.state_name(update.peer_id))
            places = links.places(
                job.spec, layout, base_digest=job.base_digest, round=job.round, peer_id=update.peer_id
            )
            link = links.Link(job.spec, reader.manifest.groups[0].codec, estimate, places)
            stack.callback(link.close)
            uplinks.append(link)
        width = min(CHUNK_COORDINATES, layout.size)
        yield _Decoded(
            layout=layout,
            links=uplinks,
            readers=readers,
            kept=kept,
            scratch=torch.empty((len(readers) + len(kept)) * width),
        )


def _apply(
    job: AggregationJob, base: ModelFile, source: _Decoded, plan: aggregators.Plan
) -> tuple[BlobInfo, dict[str, str]]:
    """Second pass: reduce, check, step, write. Gives the model file's facts and the state files' digests."""
    layout = base.layout
    optimizer = optimizers.build(job.spec.server)
    optimizer.version = job.base_version
    optimizer.warming_up = job.base_version < job.spec.compression.warm_up_rounds
    down = _downlink(job, source, plan)
    shares = [job.spec.server.lr * float(weight) for weight in plan.weights]
    names = (*optimizer.state_names, *downlink.state_names(job.spec))
    learnt = (
        tuple(links.state_name(update.peer_id) for update in job.updates)
        if links.sends_differences(job.spec)
        else ()
    )
    readers = {name: StateReader(job.states.get(name), layout.size) for name in names}
    writers = {name: StateWriter(job.states_out[name]) for name in (*names, *learnt, *source.kept)}
    writer = ModelWriter(job.model_out, layout, base.fixed)
    width = min(CHUNK_COORDINATES, layout.size)
    delta, moved = torch.empty(width), torch.empty(width)
    following = torch.empty(len(source.kept) * width)
    try:
        for start, chunk in source.chunks():
            stop = start + chunk.shape[1]
            aggregate_chunk, new_chunk = delta[: stop - start], moved[: stop - start]
            plan.reduce(chunk, aggregate_chunk)
            state = {name: reader.read(start, stop) for name, reader in readers.items()}
            optimizer.step(base.vector[start:stop], aggregate_chunk, state, new_chunk)
            if not all_finite(new_chunk):  # before a codec sees it
                raise AggregationRefused(
                    "the aggregate or the server's step gives values that are not finite"
                )
            _keep_scale(optimizer, state)
            if isinstance(down, downlink.Replayed):
                down.take(base.vector[start:stop], new_chunk, source.terms(start, shares))
            elif down is not None:
                down.take(base.vector[start:stop], new_chunk, state)
            writer.write_chunk(start // CHUNK_COORDINATES, new_chunk)
            if learnt:
                state |= zip(learnt, source.following(start, chunk), strict=True)
            if source.kept:
                vectors = following[: len(source.kept) * (stop - start)].view(-1, stop - start)
                plan.advance(chunk, vectors)
                state |= zip(source.kept, vectors, strict=True)
            for name, values in state.items():
                writers[name].write(values)
        digests = {name: state_writer.finish() for name, state_writer in writers.items()}
        if down is not None:
            digests[DELTA] = down.finish()
        return writer.finish(), digests
    finally:
        writer.close()
        if down is not None:
            down.close()
        for reader in readers.values():
            reader.close()
        for state_writer in writers.values():
            state_writer.close()


def _keep_scale(optimizer: optimizers.ServerOptimizer, state: dict[str, Tensor]) -> None:
    """For the peers, where the downlink leaves it out of the step."""
    scale = optimizer.scale(state) if SCALE in state else None
    if scale is not None:
        state[SCALE].copy_(scale)


def state_names(spec: RunSpec, updates: Sequence[UpdateInput], cohort: int) -> tuple[str, ...]:
    """What a round with these updates keeps beside the version that it makes: each a place in `states_out`."""
    return (
        *optimizers.build(spec.server).state_names,
        *downlink.state_names(spec),
        *((DELTA,) if downlink.compresses(spec) else ()),
        *((links.state_name(update.peer_id) for update in updates) if links.sends_differences(spec) else ()),
        *_kept_names(recipe.pipeline(spec, cohort), updates),
    )


def _kept_names(pipeline: aggregators.Pipeline, updates: Sequence[UpdateInput]) -> list[str]:
    keys = [update.peer_id for update in updates]
    return [f"{recipe.RULE_STATE}{name}" for name in pipeline.state_names(keys)]


def _downlink(
    job: AggregationJob, source: _Decoded, plan: aggregators.Plan
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
    up = source.readers[0].manifest.groups[0].codec
    return downlink.Replayed(up, layout, out, base_digest=job.base_digest, round=job.round)
