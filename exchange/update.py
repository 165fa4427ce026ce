"""From a trained model to an update file, chunk by chunk.

    delta = trained - base              base as the model really held it, in native dtypes
    delta scaled down                   to the norm that feedback or mechanism sets, if one does: of all chunks together
    m     = beta m + (1 - beta) delta   if the run has worker momentum; m starts as delta
    m     = mechanism.seal(m)           if the run has one
    body  = feedback.encode(codec, m)   what the codec leaves behind, the residual, stays here

Worker momentum: Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, ICML 2021;
it lowers the variance among honest updates, which is what a robust rule lives on.

Chunks are encoded on as many threads as torch may use, and appended in their order; memory: a few chunks for each
thread, whatever the model's size. State arrays are read from their present files and written to
new ones, which count only once the coordinator has given its receipt.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

import compressors
from aggregators import Source
from compressors.compose.planned import Planned, Planner
from compressors.core import integers
from compressors.feedback.feedback import LOSSLESS, MAGNITUDE_MAX, is_bounded
from exchange import group_files
from exchange.contexts import ChunkContexts, contexts_of
from exchange.contribution import Contribution
from exchange.factors import CommonFactor
from exchange.groups import Group
from exchange.local_update import Deltas, LocalUpdate, StateFiles, momenta_names
from exchange.mechanisms import Sealing
from exchange.payload import BESIDE, Manifest, PayloadWriter, groups_of
from exchange.request import UpdateRequest
from exchange.statefile import ScatteredStateWriter
from muster.errors import TaskError
from muster.files.hashedfile import BlobInfo
from muster.model.finite import all_finite
from muster.model.layout import BUFFERS, COUNTERS, PARAMS, Column, ParameterLayout
from muster.model.modelfile import ModelFile, check_unchanged
from muster.runtime.inorder import in_order
from muster.seeds import derive_seed


class Forgery(Protocol):
    """A decided attack."""

    def forge(self, honest: Tensor, out: Tensor, start: int = 0) -> None:
        """Writes to `out` [c] the columns from `start` on, of which `honest` [h, c] are the updates seen."""
        ...


class Attacker(Protocol):
    """Decides what is sent instead of the honest update: an attack simulation."""

    def plan(self, seen: Source, seed: int) -> Forgery:
        """From the honest update and, behind it, the further views."""
        ...


@dataclass(frozen=True, kw_only=True)
class WrittenUpdate:
    """An update file, and the new files of state that go with it."""

    info: BlobInfo
    staged: dict[str, Path]


def write_update(
    request: UpdateRequest,
    model: nn.Module,
    base: ModelFile,
    contribution: Contribution,
    *,
    groups: Sequence[Group] = (),
    source_digest: str = "",
    sealing: Sealing | None = None,
    attacker: Attacker | None = None,
    views: Sequence[Path] = (),
) -> WrittenUpdate:
    """Raises `TaskError` `task.not_finite`, `task.too_large`, `task.model_changed`, `task.frozen_changed`,
    `train.bad_contribution` or `mechanism.unsealed`, `StorageError`, and whatever the attacker raises. The files are
    synced.

    `groups` are those that the algorithm declares, all of which the contribution has. `views` are files of
    `write_delta`: what else the attacker sees. Each keeps a momentum of its own.
    """
    feedback = compressors.build_feedback(request.feedback)
    codec = compressors.build(_codec(request, feedback))
    layout = base.layout
    manifest = Manifest(
        run_id=request.run_id,
        round=request.round,
        assignment_id=request.assignment_id,
        base_digest=request.base_digest,
        layout_digest=layout.digest,
        groups=groups_of(layout, codec.spelling) + group_files.specs_of(groups, layout),
        scalars={name: float(value) for name, value in contribution.scalars.items()},
        source_digest=source_digest,
    )
    _check_asked(model, base, groups, sealing)
    contexts = contexts_of(request, layout)
    beta = request.worker_momentum
    momenta = momenta_names(1 + len(views)) if beta else []
    with ExitStack() as stack:
        factor = CommonFactor(codec, layout, request.base_version, request.factor)
        stack.callback(factor.close)
        state = StateFiles(
            [*feedback.state_names, *momenta], request.state, request.staged, layout.size, stack
        )
        honest = LocalUpdate(model, base, views, state, beta)
        stack.callback(honest.close)
        honest.clip(_norm_max(request, feedback, sealing))
        forgery = None if attacker is None else attacker.plan(honest, request.seed)
        if isinstance(codec, Planned) and forgery is None:
            codec = codec.planned(_plan(codec, feedback, request, _Sources(honest, state, contexts)))
        writer = PayloadWriter(request.update, manifest)
        stack.callback(writer.close)

        encoder = _Encoder(
            request=request,
            sources=_Sources(honest, state, contexts),
            codec=codec,
            feedback=feedback,
            factor=factor,
            momenta=momenta,
            sealing=sealing,
            forgery=forgery,
        )
        threads = None if forgery is None else 1  # an attack's code need not bear more
        bodies = in_order(encoder.body, len(layout.columns), threads)
        stack.callback(bodies.close)
        for column, body in zip(layout.columns, bodies, strict=True):
            writer.append(column.group, body)
        for chunk in honest.counters() if COUNTERS in layout.groups else ():
            writer.append(COUNTERS, integers.encode(chunk))
        staged = group_files.write_groups(writer, groups, contribution.groups, request, contexts)
        info = writer.finish()
        _sync(request.update)
        return WrittenUpdate(info=info, staged={**state.finish(), **staged})


def _check_asked(model: nn.Module, base: ModelFile, groups: Sequence[Group], sealing: Sealing | None) -> None:
    """What can be told before anything is written."""
    check_unchanged(model, base)
    if sealing is not None:
        sealing.check_groups(groups)


class _Sources(NamedTuple):
    honest: LocalUpdate
    state: StateFiles
    contexts: ChunkContexts


@dataclass(frozen=True, kw_only=True)
class _Encoder:
    """From a column of the update to its body. Several threads may ask for bodies at once."""

    request: UpdateRequest
    sources: _Sources
    codec: compressors.Codec
    feedback: compressors.Feedback
    factor: CommonFactor
    momenta: Sequence[str]
    sealing: Sealing | None
    forgery: Forgery | None

    def body(self, index: int) -> bytes:
        honest, state, contexts = self.sources
        layout, request = contexts.layout, self.request
        column = layout.columns[index]
        codec = self.codec if column.group == PARAMS else compressors.build(BESIDE[BUFFERS])
        rows = honest.chunk(index)
        update = rows[0]
        if self.forgery is None:
            _check(request, update, codec, layout, column)
        else:
            update = torch.empty_like(update)
            self.forgery.forge(rows, update, column.start)
        if column.group != PARAMS:
            return codec.encode(update, 0)
        if self.sealing is not None:
            update = self.sealing.seal(update, request, index, column.start, layout.size)
        kept = {name: state.read(name, column.start, column.stop) for name in self.feedback.state_names}
        seed = derive_seed(request.seed, "codec", index)
        context = self.factor.at(contexts.at(index), index)
        try:
            body = self.feedback.encode(codec.at(context), update, kept, seed)
        except compressors.DecodeError as error:
            raise _too_large(request, codec) from error
        state.write({**kept, **dict(zip(self.momenta, rows, strict=False))}, column.start)
        return body


def _plan(
    codec: Planned, feedback: compressors.Feedback, request: UpdateRequest, sources: _Sources
) -> tuple[int, ...]:
    """Which codec each layer has: what will be sent is encoded once more than otherwise, with each of them."""
    honest, state, contexts = sources
    layout = contexts.layout
    planner = Planner(codec, len(layout.tensors))
    for index in range(layout.chunk_count):
        start, stop = layout.chunk_bounds(index)
        kept = {name: state.read(name, start, stop) for name in feedback.state_names}
        at = planner.at(contexts.at(index))
        update = honest.chunk(index)[0]
        _check(request, update, codec, layout, layout.columns[index])
        try:
            feedback.encode(at, update, kept, derive_seed(request.seed, "codec", index))
        except compressors.DecodeError as error:
            raise _too_large(request, codec) from error
    return planner.choice()


def _norm_max(request: UpdateRequest, feedback: compressors.Feedback, sealing: Sealing | None) -> float:
    """To which the update is scaled down: whichever of the two wants less."""
    limit = feedback.norm_max(request.senders)
    return limit if sealing is None else min(limit, sealing.mechanism.clip_norm)


def _codec(request: UpdateRequest, feedback: compressors.Feedback) -> str:
    """The run's codec in this round. But where differences are sent, and the coordinator has a sum of them of
    which this peer has lost its own copy, both begin anew with a body that loses nothing."""
    lost = any(name not in request.state for name in feedback.state_names)
    if feedback.receiver_state_names and request.counted_round and lost:
        return "identity"
    return feedback.codec_in(request.codec, request.base_version + 1, request.warm_up_rounds)


def write_delta(model: nn.Module, base: ModelFile, path: Path) -> None:
    """What training changed, to a new file of float32. Raises `StorageError`. Not synced."""
    deltas = Deltas(model, base)
    writer = ScatteredStateWriter(path)
    try:
        for column in base.layout.columns:
            delta = torch.empty(column.stop - column.start, dtype=torch.float32)
            deltas.read(column, delta)
            writer.write(delta, column.start)
    finally:
        writer.close()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check(
    request: UpdateRequest, update: Tensor, codec: compressors.Codec, layout: ParameterLayout, column: Column
) -> None:
    if is_bounded(update):
        return
    if not all_finite(update):
        vector = layout.groups[column.group]
        at = vector.chunk_bounds(column.index)[0] + int((~update.isfinite()).nonzero()[0])
        raise TaskError(
            "task.not_finite",
            f"training{_of(request)} on this peer gave values that are not finite in {vector.tensor_at(at)!r}",
            cause="the loss diverged, or the data hold NaN or infinity",
            fix="lower [train] lr, set [train] clip_norm, or look at this site's data",
        )
    if column.group == PARAMS and codec.spelling != LOSSLESS:
        raise _too_large(request, codec)


def _of(request: UpdateRequest) -> str:
    return f" {request.task}" if request.task else ""


def _too_large(request: UpdateRequest, codec: compressors.Codec) -> TaskError:
    return TaskError(
        "task.too_large",
        f"training{_of(request)} on this peer gave values too large for the codec {codec.spelling}, though finite",
        cause=f"the loss diverged; only identity is given values above {MAGNITUDE_MAX:.2g}, and some codecs bear less",
        fix="lower [train] lr, set [train] clip_norm, or look at this site's data",
    )
