"""The factor that all updates of a round share, fetched beside the base version; see `compressors.lowrank.powersgd`."""

from __future__ import annotations

from pathlib import Path

import compressors
from compressors.lowrank.lowrank import LowRank
from compressors.lowrank.powersgd import Factors
from exchange.places import pieces
from muster.model.layout import ParameterLayout
from peer.training.statefile import StateReader
from peer.work.orders import TrainOrder


class CommonFactor:
    """Of a round's codec; one that asks for no factor has every place as it is.

    Raises `StorageError` "peer.state_malformed" if the file is not as long as this model's factors.
    """

    def __init__(self, order: TrainOrder, codec: compressors.Codec, layout: ParameterLayout) -> None:
        self._factors: Factors | None = None
        self._reader: StateReader | None = None
        if isinstance(codec, LowRank) and codec.common:
            chunks = (pieces(layout, index)[0] for index in range(layout.chunk_count))
            self._factors = Factors(codec.rank, chunks, order.base_version % 2)
            if order.factor is not None:
                self._reader = StateReader(Path(order.factor), self._factors.size)

    def at(self, place: compressors.ChunkContext, index: int) -> compressors.ChunkContext:
        """The place of chunk `index`, with its factor."""
        if self._factors is None:
            return place
        return self._factors.at(place, index, None if self._reader is None else self._reader.read)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
