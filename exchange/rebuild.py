"""A model version made of an older one and the deltas between them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from exchange.delta import DeltaReader, bad_delta
from exchange.statefile import StateReader
from muster.files.hashedfile import BlobInfo
from muster.model.layout import CHUNK_COORDINATES, PARAMS, ParameterLayout
from muster.model.modelfile import ModelFile, ModelWriter


def rebuild(base: Path, deltas: Sequence[Path], target: Path, scale: Path | None = None) -> BlobInfo:
    """Writes to `target` the version that the deltas lead to, in their order; gives its size and digest.

        version = base + m_1 + ... + m_k,   m_i as the delta's codec decodes it, by coordinate times `scale`
                                            where the delta says so
    with the buffers and counters of the last, and the base's own fixed tensors;
    in float32 and in this order, as they were made one after the other. Memory: a chunk or two.
    Raises `TransferError` "model.bad_delta" if a delta is not one of this model, `StorageError`.
    """
    with ExitStack() as stack:
        model = ModelFile(base)
        stack.callback(model.close)
        layout = model.layout
        readers: list[DeltaReader] = []
        for path in deltas:
            readers.append(DeltaReader(path, layout))
            stack.callback(readers[-1].close)
        if any(reader.scaled for reader in readers) and scale is None:
            raise bad_delta("it goes with a scale, and there is none")
        scales = StateReader(scale, layout.size)
        stack.callback(scales.close)
        writer = ModelWriter(target, layout, model.fixed)
        stack.callback(writer.close)
        sums, step = torch.empty(2, min(CHUNK_COORDINATES, layout.size), dtype=torch.float32)
        for index in range(layout.chunk_count):
            start, stop = layout.chunk_bounds(index)
            values, moved = sums[: stop - start], step[: stop - start]
            values.copy_(model.vector[start:stop])
            factors = scales.read(start, stop)
            for reader in readers:
                reader.read(index, moved)
                if reader.scaled:
                    moved.mul_(factors)
                values.add_(moved)
            writer.write_chunk(index, values)
        _write_beside(writer, layout, readers[-1])
        return writer.finish()


def _write_beside(writer: ModelWriter, layout: ParameterLayout, last: DeltaReader) -> None:
    """Buffers and counters, whose values are in the last delta."""
    for group, vector in layout.groups.items():
        if group != PARAMS:
            for index in range(vector.chunk_count):
                writer.write_chunk(index, last.read_beside(group, index), group)
