"""The file that leads from one model version to the next: a payload with the encoded step and what is not trained.

    version = base + m                 m as the delta's codec decodes it
    version = base + scale m           of a codec spelled "scaled:..."; by coordinate
    version = base + sum of updates    of one spelled "replay:...", see `compressors.core.replay`

Buffers and counters are the new version's values. `DeltaWriter` and `DeltaReader` are the two ends of this format;
`exchange.downlink` decides what the step is, `exchange.rebuild` takes it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import compressors
from compressors.core import integers
from compressors.core.replay import PREFIX, Replay
from exchange.contexts import ChunkContexts
from exchange.payload import BESIDE, SCALED, Manifest, PayloadReader, PayloadWriter, groups_of
from muster.errors import TransferError
from muster.model.layout import BUFFERS, COUNTERS, PARAMS, ParameterLayout


class DeltaWriter:
    """Writes a delta by chunks, in order: `append` for parameters, then `take_beside`. Raises `StorageError`."""

    def __init__(
        self, codec: str, layout: ParameterLayout, out: Path, *, base_digest: str, round: int
    ) -> None:
        self._contexts = ChunkContexts(layout=layout, base_digest=base_digest, round=round)
        self._index = 0
        self._beside = compressors.build(BESIDE[BUFFERS])
        self._writer = PayloadWriter(
            out,
            Manifest(
                run_id="",
                round=round,
                assignment_id="",
                base_digest=base_digest,
                layout_digest=layout.digest,
                groups=groups_of(layout, codec),
            ),
        )

    @property
    def index(self) -> int:
        """Of the chunk of parameters that is next."""
        return self._index

    def context(self) -> compressors.ChunkContext:
        """Of the chunk of parameters that is next."""
        return self._contexts.at(self._index)

    def append(self, body: bytes) -> None:
        """The next chunk of parameters, encoded."""
        self._writer.append(PARAMS, body)
        self._index += 1

    def take_beside(self, group: str, new: Tensor) -> None:
        """The next chunk of buffers or counters: the new version's values, in the order of the groups."""
        body = integers.encode(new) if group == COUNTERS else self._beside.encode(new, 0)
        self._writer.append(group, body)

    def finish(self) -> str:
        """The delta's digest."""
        return self._writer.finish().digest

    def close(self) -> None:
        """Closes the file, finished or not; harmless when it is closed already."""
        self._writer.close()


class DeltaReader:
    """A delta of a model of this layout. Raises `TransferError` "model.bad_delta", `UpdateRejected`."""

    def __init__(self, path: Path, layout: ParameterLayout) -> None:
        self._layout = layout
        self._payload = PayloadReader(path)
        try:
            manifest = self._payload.manifest
            spelling = manifest.codec_of(PARAMS)
            if manifest.layout_digest != layout.digest or manifest.groups != groups_of(layout, spelling):
                raise bad_delta("it belongs to another model")
            self.scaled = spelling.startswith(SCALED)
            self._codec = _codec(spelling.removeprefix(SCALED))
        except TransferError:
            self._payload.close()
            raise
        self._beside = compressors.build(BESIDE[BUFFERS])
        self._contexts = ChunkContexts(layout=layout, base_digest=manifest.base_digest, round=manifest.round)

    def read(self, index: int, out: Tensor) -> None:
        """Fills `out` [c] with the step of chunk `index` of the parameters, without its scale."""
        body = self._payload.chunk(PARAMS, index)
        try:
            self._codec.at(self._contexts.at(index)).decode(body, out)
        except compressors.DecodeError as error:
            raise bad_delta(str(error)) from error

    def read_beside(self, group: str, index: int) -> Tensor:
        """The new version's values [c] of a chunk of buffers or counters."""
        start, stop = self._layout.groups[group].chunk_bounds(index)
        body = self._payload.chunk(group, index)
        try:
            if group == COUNTERS:
                return integers.decode(body, stop - start)
            values = torch.empty(stop - start, dtype=torch.float32)
            self._beside.decode(body, values)
        except compressors.DecodeError as error:
            raise bad_delta(str(error)) from error
        return values

    def close(self) -> None:
        self._payload.close()


def _codec(spelling: str) -> compressors.Codec | Replay:
    try:
        if spelling.startswith(PREFIX):
            return Replay(compressors.build(spelling.removeprefix(PREFIX)))
        return compressors.build(spelling)
    except compressors.CodecError as error:
        raise bad_delta(str(error)) from error


def bad_delta(why: str) -> TransferError:
    """An error about a delta that cannot be followed."""
    return TransferError(
        "model.bad_delta",
        f"a model version's delta is not usable: {why}",
        fix="install the same version of Muster on coordinator and peer; the version is fetched whole instead",
    )
