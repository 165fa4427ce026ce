"""A model version made of an older one and the deltas between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

import compressors
from compressors.core import integers
from compressors.core.replay import PREFIX, Replay
from exchange.payload import BESIDE, SCALED, PayloadReader, groups_of
from exchange.places import ChunkContexts
from muster.errors import TransferError
from muster.model.layout import BUFFERS, CHUNK_COORDINATES, COUNTERS, PARAMS, ParameterLayout
from muster.model.modelfile import ModelFile, ModelWriter
from peer.training.statefile import StateReader


def rebuild(base: Path, deltas: Sequence[Path], target: Path, scale: Path | None = None) -> str:
    """Writes to `target` the version that the deltas lead to, in their order; gives its digest.

        version = base + m_1 + ... + m_k,   m_i as the delta's codec decodes it, by coordinate times `scale`
                                            where the delta says so
    with the buffers and counters of the last, and the base's own fixed tensors;
    in float32 and in this order, as the coordinator made them one after the other. Memory: a chunk or two.
    Raises `TransferError` "model.bad_delta" if a delta is not one of this model, `StorageError`.
    """
    model = ModelFile(base)
    readers: list[PayloadReader] = []
    writer: ModelWriter | None = None
    scales: StateReader | None = None
    try:
        readers.extend(PayloadReader(path) for path in deltas)
        layout = model.layout
        codecs = [_codec(reader, layout) for reader in readers]
        scaled = [reader.manifest.groups[0].codec.startswith(SCALED) for reader in readers]
        if any(scaled) and scale is None:
            raise _bad("it goes with a scale, and there is none")
        scales = StateReader(scale, layout.size)
        places = [
            ChunkContexts(layout=layout, base_digest=reader.manifest.base_digest, round=reader.manifest.round)
            for reader in readers
        ]
        writer = ModelWriter(target, layout, model.fixed)
        width = min(CHUNK_COORDINATES, layout.size)
        sums, step = torch.empty(2, width, dtype=torch.float32)
        for index in range(layout.chunk_count):
            start, stop = layout.chunk_bounds(index)
            values, moved = sums[: stop - start], step[: stop - start]
            values.copy_(model.vector[start:stop])
            factors = scales.read(start, stop)
            for reader, codec, where, times in zip(readers, codecs, places, scaled, strict=True):
                codec.at(compressors.ChunkContext(*where.facts(index))).decode(
                    reader.chunk("params", index), moved
                )
                if times:
                    moved.mul_(factors)
                values.add_(moved)
            writer.write_chunk(index, values)
        _beside(writer, layout, readers[-1])
        return writer.finish().digest
    except compressors.DecodeError as error:
        raise _bad(str(error)) from error
    finally:
        for reader in readers:
            reader.close()
        if scales is not None:
            scales.close()
        if writer is not None:
            writer.close()
        model.close()


def _beside(writer: ModelWriter, layout: ParameterLayout, last: PayloadReader) -> None:
    """Buffers and counters, whose values are in the last delta."""
    codec = compressors.build(BESIDE[BUFFERS])
    for group, vector in layout.groups.items():
        for index in range(vector.chunk_count if group != PARAMS else 0):
            start, stop = vector.chunk_bounds(index)
            body = last.chunk(group, index)
            if group == COUNTERS:
                values = integers.decode(body, stop - start)
            else:
                values = torch.empty(stop - start, dtype=torch.float32)
                codec.decode(body, values)
            writer.write_chunk(index, values, group)


def _codec(reader: PayloadReader, layout: ParameterLayout) -> compressors.Codec | Replay:
    manifest = reader.manifest
    if (
        manifest.layout_digest != layout.digest
        or not manifest.groups
        or manifest.groups != groups_of(layout, manifest.groups[0].codec)
    ):
        raise _bad("it belongs to another model")
    spelling = manifest.groups[0].codec.removeprefix(SCALED)
    try:
        if spelling.startswith(PREFIX):
            return Replay(compressors.build(spelling.removeprefix(PREFIX)))
        return compressors.build(spelling)
    except compressors.CodecError as error:
        raise _bad(str(error)) from error


def _bad(why: str) -> TransferError:
    return TransferError(
        "model.bad_delta",
        f"a model version's delta is not usable: {why}",
        fix="install the same version of Muster on coordinator and peer; the version is fetched whole instead",
    )
