"""What a receiver keeps of decoded updates from one round to the next: links' estimates and a rule's own vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import aggregators
from exchange import links
from exchange.decoded import Decoded, kept_names
from exchange.job import UpdateInput
from exchange.statefile import StateWriter
from muster.model.layout import CHUNK_COORDINATES
from muster.spec.model import RunSpec


def state_names(
    spec: RunSpec, pipeline: aggregators.Pipeline, updates: Sequence[UpdateInput]
) -> tuple[str, ...]:
    """The vectors that are kept of these updates: a file each."""
    learnt = (links.state_name(update.peer_id) for update in updates) if links.sends_differences(spec) else ()
    return (*learnt, *kept_names(pipeline, updates))


class KeptRows:
    """Writes them stretch by stretch, in the order of the columns."""

    def __init__(
        self,
        spec: RunSpec,
        updates: Sequence[UpdateInput],
        source: Decoded,
        plan: aggregators.Plan,
        out: Mapping[str, Path],
    ) -> None:
        self._source, self._plan = source, plan
        self._learnt: tuple[str, ...] = ()
        if links.sends_differences(spec):
            self._learnt = tuple(links.state_name(update.peer_id) for update in updates)
        self._writers = {name: StateWriter(out[name]) for name in (*self._learnt, *source.kept)}
        self._room = torch.empty(len(source.kept) * min(CHUNK_COORDINATES, source.layout.columns_size))

    @property
    def needed(self) -> bool:
        """Whether there is anything to keep."""
        return bool(self._writers)

    def take(self, start: int, rows: Tensor) -> None:
        """The decoded rows [n + kept, c] from coordinate `start` on."""
        if start < self._source.layout.size:
            for name, link, row in zip(self._learnt, self._source.links, rows, strict=False):
                self._writers[name].write(link.following(row, start))
        if not self._source.kept:
            return
        width = rows.shape[1]
        vectors = self._room[: len(self._source.kept) * width].view(-1, width)
        self._plan.advance(rows, vectors)
        for name, values in zip(self._source.kept, vectors, strict=True):
            self._writers[name].write(values)

    def finish(self) -> dict[str, str]:
        """The files' digests."""
        return {name: writer.finish() for name, writer in self._writers.items()}

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
