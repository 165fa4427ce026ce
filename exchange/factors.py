"""The factor that all senders of a round have in common, where the uplink's codec asks for one: "powersgd:4:common".

It is made of the step that led to a version, is kept beside that version, and peers fetch it before they train from it;
version 0 has none, and all begin with the same random directions. Which side it belongs to changes with the version.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

import compressors
from compressors.lowrank.lowrank import LowRank
from compressors.lowrank.powersgd import Factors
from exchange.contexts import ChunkContexts, pieces
from exchange.recipe import AggregationRefused
from exchange.statefile import StateReader, StateWriter
from muster.errors import StorageError
from muster.model.finite import all_finite
from muster.model.layout import ParameterLayout


class CommonFactor:
    """The one that goes with a version; `path` is its file, None for version 0. A codec that asks for no factor has
    every chunk's context as it is.

    Raises `StorageError` "store.no_factor" if it is missing, "state.malformed" if it is not as long as this model's.
    """

    def __init__(
        self, codec: compressors.Codec, layout: ParameterLayout, version: int, path: Path | None
    ) -> None:
        self.codec: LowRank | None = None
        self._reader: StateReader | None = None
        if not (isinstance(codec, LowRank) and codec.common):
            return
        if version and path is None:
            raise StorageError(
                "store.no_factor",
                f"the factor that all updates against version {version} share is not here",
                cause="it was removed, or the run is from another version of Muster",
                fix="start the run anew",
            )
        self.codec = codec
        chunks = (pieces(layout, index)[0] for index in range(layout.chunk_count))
        self._factors = Factors(codec.rank, chunks, version % 2)
        self._reader = None if path is None else StateReader(path, self._factors.size)

    def at(self, context: compressors.ChunkContext, index: int) -> compressors.ChunkContext:
        """The context of chunk `index`, with its factor."""
        if self.codec is None:
            return context
        return self._factors.at(context, index, None if self._reader is None else self._reader.read)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class NextFactor:
    """The one that goes with the version that a round makes, chunk by chunk in order."""

    def __init__(self, present: CommonFactor, contexts: ChunkContexts, out: Path) -> None:
        if present.codec is None:
            raise ValueError("the codec asks for no common factor")
        self._codec = present.codec
        self._present = present
        self._contexts = contexts
        self._index = 0
        self._writer = StateWriter(out)

    def take(self, base: Tensor, new: Tensor) -> None:
        """The next chunk, [c] each: what the version was, and what it is now. Raises `AggregationRefused`."""
        context = self._present.at(self._contexts.at(self._index), self._index)
        factor = self._codec.at(context).exchange(len(new)).next_factor(new - base)
        if not all_finite(factor):  # nobody could read an update with it
            raise AggregationRefused("the step is too large for the factor that the next updates would share")
        self._writer.write(factor)
        self._index += 1

    def finish(self) -> str:
        """The file's digest."""
        return self._writer.finish()

    def close(self) -> None:
        self._writer.close()
