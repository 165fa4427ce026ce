"""From a trained model to an update file, chunk by chunk.

    delta = trained - base              base as the model really held it, in native dtypes
    m     = beta m + (1 - beta) delta   if the run has worker momentum; m starts as delta
    body  = feedback.encode(codec, m)   what the codec leaves behind, the residual, stays here

Worker momentum: Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, ICML 2021;
it lowers the variance among honest updates, which is what a robust rule lives on.

Memory: a few chunks, whatever the model's size. State arrays are read from their present files and written to
new ones, which count only once the coordinator has given its receipt.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import compressors
from muster.errors import TaskError
from muster.finite import all_finite
from muster.hashedfile import BlobInfo
from muster.layout import CHUNK_COORDINATES
from muster.modelfile import ModelFile, read_state
from muster.payload import GroupSpec, Manifest, PayloadWriter
from muster.seeds import derive_seed
from muster.task import FitReport
from peer.drill import Drill
from peer.orders import TrainOrder
from peer.statefile import StateReader, StateWriter

MOMENTUM = "momentum"


@dataclass(frozen=True, kw_only=True)
class WrittenUpdate:
    info: BlobInfo
    staged: dict[str, Path]


def write_update(
    order: TrainOrder, model: nn.Module, base: ModelFile, report: FitReport, drill: Drill | None
) -> WrittenUpdate:
    """Raises `TaskError` `task.not_finite`, `StorageError`. The files are synced."""
    codec = compressors.build(order.codec)
    feedback = compressors.build_feedback(order.feedback)
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
    beta = float(order.train["worker_momentum"])
    names = [*feedback.state_names, *([MOMENTUM] if beta else [])]
    trained = read_state(model)
    scratch, rounded = torch.empty(2, min(CHUNK_COORDINATES, layout.size))
    with ExitStack() as stack:
        state = _StateFiles(order, names, layout.size, stack)
        writer = PayloadWriter(Path(order.update), manifest)
        stack.callback(writer.close)
        for index in range(layout.chunk_count):
            start, stop = layout.chunk_bounds(index)
            delta, base_chunk = scratch[: stop - start], rounded[: stop - start]
            trained.read(index, delta)
            base.read_native(index, base_chunk)
            delta -= base_chunk
            if drill is None and not all_finite(delta):
                raise _not_finite(order)
            values = state.read(start, stop)
            if beta:
                _fold_momentum(delta, values, beta, fresh=state.fresh)
            if drill is not None:
                delta = drill.forge(delta)
            kept = {name: values[name] for name in feedback.state_names}
            body = feedback.encode(codec, delta, kept, derive_seed(order.seed, "codec", index))
            state.write({**values, **kept})
            writer.append("params", body)
        info = writer.finish()
        _sync(Path(order.update))
        return WrittenUpdate(info=info, staged=state.finish())


def _fold_momentum(delta: Tensor, values: dict[str, Tensor], beta: float, *, fresh: bool) -> None:
    """Turns `delta` into the momentum, in place, and keeps a copy of it in `values`."""
    if not fresh:
        delta.mul_(1.0 - beta).add_(values[MOMENTUM], alpha=beta)
    values[MOMENTUM] = delta.clone()


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

    @property
    def fresh(self) -> bool:
        """Whether this is the run's first update from this peer."""
        return all(reader.fresh for reader in self._readers.values())

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        return {name: reader.read(start, stop) for name, reader in self._readers.items()}

    def write(self, values: dict[str, Tensor]) -> None:
        for name, writer in self._writers.items():
            writer.write(values[name])

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


def _not_finite(order: TrainOrder) -> TaskError:
    return TaskError(
        "task.not_finite",
        f"training {order.task} on this peer gave values that are not finite",
        cause="the loss diverged, or the data hold NaN or infinity",
        fix="lower [train] lr, set [train] clip_norm, or look at this site's data",
    )
