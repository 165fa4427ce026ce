"""From a trained model to an update file, chunk by chunk.

    delta = trained - base              base as the model really held it, in native dtypes
    m     = beta m + (1 - beta) delta   if the run has worker momentum; m starts as delta
    body  = feedback.encode(codec, m)   what the codec leaves behind, the residual, stays here

Worker momentum: Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, ICML 2021;
it lowers the variance among honest updates, which is what a robust rule lives on.

Chunks are encoded on as many threads as torch may use, and appended in their order; memory: a few chunks for each
thread, whatever the model's size. State arrays are read from their present files and written to
new ones, which count only once the coordinator has given its receipt.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import compressors
from compressors.feedback import LOSSLESS, MAGNITUDE_MAX, is_bounded
from compressors.planned import Planned, Planner
from muster.errors import TaskError
from muster.finite import all_finite
from muster.hashedfile import BlobInfo
from muster.inorder import in_order
from muster.modelfile import ModelFile, read_state
from muster.payload import GroupSpec, Manifest, PayloadWriter
from muster.places import Places
from muster.seeds import derive_seed
from muster.task import FitReport
from peer.drill import Drill
from peer.factor import CommonFactor
from peer.orders import TrainOrder
from peer.statefile import StateReader, StateWriter

MOMENTUM = "momentum"


@dataclass(frozen=True, kw_only=True)
class WrittenUpdate:
    info: BlobInfo
    staged: dict[str, Path]


def write_update(
    order: TrainOrder,
    model: nn.Module,
    base: ModelFile,
    report: FitReport,
    *,
    drill: Drill | None,
    views: Sequence[Path],
) -> WrittenUpdate:
    """Raises `TaskError` `task.not_finite` or `task.too_large`, `StorageError`, and of a drill `ConfigError`. The files
    are synced.

    `views` are files of `write_delta`: what else the drill sees. Each keeps a momentum of its own.
    """
    feedback = compressors.build_feedback(order.feedback)
    codec = compressors.build(_codec(order, feedback))
    layout = base.layout
    manifest = Manifest(
        run_id=order.run_id,
        round=order.round,
        assignment_id=order.assignment_id,
        base_digest=order.base_digest,
        layout_digest=layout.digest,
        groups=(GroupSpec(name="params", codec=codec.spelling, size=layout.size),),
        scalars=_scalars(report),
    )
    places = order.places(layout)
    beta = float(order.train["worker_momentum"])
    momenta = _momenta(1 + len(views)) if beta else []
    with ExitStack() as stack:
        factor = CommonFactor(order, codec, layout)
        stack.callback(factor.close)
        state = _StateFiles(order, [*feedback.state_names, *momenta], layout.size, stack)
        honest = _Honest(model, base, views, state, beta)
        stack.callback(honest.close)
        forgery = None if drill is None else drill.plan(honest, order.seed)
        if isinstance(codec, Planned) and forgery is None:
            codec = codec.planned(_plan(codec, feedback, order, _Sources(honest, state, places)))
        writer = PayloadWriter(Path(order.update), manifest)
        stack.callback(writer.close)

        def encoded(index: int) -> bytes:
            start, stop = layout.chunk_bounds(index)
            rows = honest.chunk(index)
            if forgery is None:
                _check(order, rows[0], codec)
            update = rows[0]
            if forgery is not None:
                update = torch.empty_like(update)
                forgery.forge(rows, update, start)
            kept = {name: state.read(name, start, stop) for name in feedback.state_names}
            seed = derive_seed(order.seed, "codec", index)
            place = factor.at(compressors.Place(*places.facts(index)), index)
            try:
                body = feedback.encode(codec.at(place), update, kept, seed)
            except compressors.DecodeError as error:
                raise _too_large(order, codec) from error
            state.write({**kept, **dict(zip(momenta, rows, strict=False))}, start)
            return body

        threads = None if forgery is None else 1  # an attack's code need not bear more
        bodies = in_order(encoded, layout.chunk_count, threads)
        stack.callback(bodies.close)
        for body in bodies:
            writer.append("params", body)
        info = writer.finish()
        _sync(Path(order.update))
        return WrittenUpdate(info=info, staged=state.finish())


class _Sources(NamedTuple):
    honest: _Honest
    state: _StateFiles
    places: Places


def _plan(
    codec: Planned, feedback: compressors.Feedback, order: TrainOrder, sources: _Sources
) -> tuple[int, ...]:
    """Which codec each layer has: what will be sent is encoded once more than otherwise, with each of them."""
    honest, state, places = sources
    layout = places.layout
    planner = Planner(codec, len(layout.tensors))
    for index in range(layout.chunk_count):
        start, stop = layout.chunk_bounds(index)
        kept = {name: state.read(name, start, stop) for name in feedback.state_names}
        at = planner.at(compressors.Place(*places.facts(index)))
        update = honest.chunk(index)[0]
        _check(order, update, codec)
        try:
            feedback.encode(at, update, kept, derive_seed(order.seed, "codec", index))
        except compressors.DecodeError as error:
            raise _too_large(order, codec) from error
    return planner.choice()


def _codec(order: TrainOrder, feedback: compressors.Feedback) -> str:
    """The run's codec in this round. But where differences are sent, and the coordinator has a sum of them of
    which this peer has lost its own copy, both begin anew with a body that loses nothing."""
    lost = any(name not in order.state for name in feedback.state_names)
    if feedback.receiver_state_names and order.counted_round and lost:
        return "identity"
    return feedback.codec_in(order.codec, order.base_version + 1, order.warm_up_rounds)


def write_delta(model: nn.Module, base: ModelFile, path: Path) -> None:
    """What training changed, to a new file of float32. Raises `StorageError`. Not synced."""
    deltas = _Deltas(model, base)
    writer = StateWriter(path)
    try:
        for index in range(base.layout.chunk_count):
            start, stop = base.layout.chunk_bounds(index)
            delta = torch.empty(stop - start)
            deltas.read(index, delta)
            writer.write(delta, start)
    finally:
        writer.close()


def _momenta(count: int) -> list[str]:
    return [MOMENTUM, *(f"{MOMENTUM}-{number}" for number in range(1, count))]


class _Room(threading.local):
    """Memory used again and again, each thread's own."""

    def __init__(self) -> None:
        self._held = torch.empty(0)

    def of(self, size: int) -> Tensor:
        if len(self._held) < size:
            self._held = torch.empty(size)
        return self._held[:size]


class _Deltas:
    """What training changed: the model less the base as it really held it."""

    def __init__(self, model: nn.Module, base: ModelFile) -> None:
        self._trained = read_state(model)
        self._base = base
        self._room = _Room()

    def read(self, index: int, out: Tensor) -> None:
        self._trained.read(index, out)
        rounded = self._room.of(len(out))
        self._base.read_native(index, rounded)
        out -= rounded


class _Honest:
    """The honest update of this peer and, of a drill, of its further views, chunk by chunk: a
    `aggregators.Source`."""

    def __init__(
        self, model: nn.Module, base: ModelFile, views: Sequence[Path], state: _StateFiles, beta: float
    ) -> None:
        self.n = 1 + len(views)
        self.size = base.layout.size
        self._layout = base.layout
        self._deltas = _Deltas(model, base)
        self._views = [StateReader(path, self.size) for path in views]
        self._state = state
        self._beta = beta
        self._room = _Room()

    def chunk(self, index: int) -> Tensor:
        """[n, c] with the momentum folded in; the same memory every time that a thread asks."""
        start, stop = self._layout.chunk_bounds(index)
        rows = self._room.of(self.n * (stop - start)).view(self.n, -1)
        self._deltas.read(index, rows[0])
        for row, view in zip(rows[1:], self._views, strict=True):
            row.copy_(view.read(start, stop))
        if self._beta:
            for row, name in zip(rows, _momenta(self.n), strict=True):
                if not self._state.fresh(name):
                    row.mul_(1.0 - self._beta).add_(self._state.read(name, start, stop), alpha=self._beta)
        return rows

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for index in range(self._layout.chunk_count):
            yield self._layout.chunk_bounds(index)[0], self.chunk(index)

    def close(self) -> None:
        for view in self._views:
            view.close()


class _StateFiles:
    """The run's state arrays on this peer: the present files to read, and a new file for each."""

    def __init__(self, order: TrainOrder, names: list[str], size: int, stack: ExitStack) -> None:
        self._readers: dict[str, StateReader] = {}
        self._writers: dict[str, StateWriter] = {}
        for number, name in enumerate(names):
            present = order.state.get(name)
            self._readers[name] = StateReader(None if present is None else Path(present), size)
            stack.callback(self._readers[name].close)
            self._writers[name] = StateWriter(Path(f"{order.staged}.{number}"))
            stack.callback(self._writers[name].close)

    def fresh(self, name: str) -> bool:
        """Whether this is the first update from this peer that keeps the array."""
        return self._readers[name].fresh

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._readers[name].read(start, stop)

    def write(self, values: dict[str, Tensor], start: int) -> None:
        for name, writer in self._writers.items():
            writer.write(values[name], start)

    def finish(self) -> dict[str, Path]:
        for writer in self._writers.values():
            writer.finish()
        return {name: writer.path for name, writer in self._writers.items()}


def _scalars(report: FitReport) -> dict[str, float]:
    return {
        "examples": float(report.examples),
        "steps": float(report.steps),
        **{f"metric/{name}": float(value) for name, value in report.metrics.items()},
    }


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check(order: TrainOrder, update: Tensor, codec: compressors.Codec) -> None:
    if not all_finite(update):
        raise TaskError(
            "task.not_finite",
            f"training {order.task} on this peer gave values that are not finite",
            cause="the loss diverged, or the data hold NaN or infinity",
            fix="lower [train] lr, set [train] clip_norm, or look at this site's data",
        )
    if codec.spelling != LOSSLESS and not is_bounded(update):
        raise _too_large(order, codec)


def _too_large(order: TrainOrder, codec: compressors.Codec) -> TaskError:
    return TaskError(
        "task.too_large",
        f"training {order.task} on this peer gave values too large for the codec {codec.spelling}, though finite",
        cause=f"the loss diverged; only identity carries values above {MAGNITUDE_MAX:.2g}, and some codecs carry less",
        fix="lower [train] lr, set [train] clip_norm, or look at this site's data",
    )
