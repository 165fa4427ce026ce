"""A round's updates as column chunks, decoded from their mapped files one chunk at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import aggregators
from compressors.core import integers
from compressors.core.replay import Term
from exchange import links, recipe
from exchange.factors import CommonFactor
from exchange.names import FACTOR
from exchange.payload import PayloadReader
from exchange.statefile import StateReader
from muster.files.digests import digest_bytes
from muster.model.layout import CHUNK_COORDINATES, COUNTERS, ParameterLayout, Vector

DRAWN_BYTES = 4096  # of each update's first chunk

if TYPE_CHECKING:
    from exchange.aggregation import AggregationJob, UpdateInput


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The round's updates, and behind them the vectors that the rule keeps, as column chunks [n + kept, c].

    One scratch is used again and again.
    """

    layout: ParameterLayout
    links: Sequence[links.Link]
    readers: Sequence[PayloadReader]
    factor: CommonFactor | None
    kept: Mapping[str, StateReader]  # by name
    scratch: Tensor  # flat [(n + kept) * chunk]

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        n, rows = len(self.readers), len(self.readers) + len(self.kept)
        for column in self.layout.columns:
            start, stop = column.start, column.stop
            chunk = self.scratch[: rows * (stop - start)].view(rows, stop - start)
            for row, reader, link in zip(chunk[:n], self.readers, self.links, strict=True):
                link.read(reader, column, row)
            for row, vector in zip(chunk[n:], self.kept.values(), strict=True):
                row.copy_(vector.read(start, stop))
            yield start, chunk

    def counters(self) -> Iterator[tuple[int, Tensor]]:
        """The updates' counters by chunks, [n, c] int64."""
        vector = self.layout.groups.get(COUNTERS, Vector(tensors=()))
        for index in range(vector.chunk_count):
            start, stop = vector.chunk_bounds(index)
            bodies = [reader.chunk(COUNTERS, index) for reader in self.readers]
            yield index, torch.stack([integers.decode(body, stop - start) for body in bodies])

    def drawn(self) -> str:
        """What a rule's randomness comes from beside the run's seed, which peers are told: nobody knows all updates
        before the round is closed, so no liar can aim at a bucket or at the coordinates that are sampled."""
        return digest_bytes(b"".join(reader.chunk("params", 0)[:DRAWN_BYTES] for reader in self.readers))

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
def decoded(
    job: AggregationJob, pipeline: aggregators.Pipeline, layout: ParameterLayout
) -> Generator[Decoded]:
    with ExitStack() as stack:
        kept: dict[str, StateReader] = {}
        for name in kept_names(pipeline, job.updates):
            kept[name] = StateReader(job.states.get(name), layout.columns_size)
            stack.callback(kept[name].close)
        factor: CommonFactor | None = None
        if job.spec.compression.common_factor:
            factor = CommonFactor(job.spec, layout, job.base_version, job.states.get(FACTOR))
            stack.callback(factor.close)
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
            spelling = reader.manifest.groups[0].codec
            link = links.Link(job.spec, spelling, places, estimate=estimate, factor=factor)
            stack.callback(link.close)
            uplinks.append(link)
        width = min(CHUNK_COORDINATES, layout.columns_size)
        yield Decoded(
            layout=layout,
            links=uplinks,
            readers=readers,
            factor=factor,
            kept=kept,
            scratch=torch.empty((len(readers) + len(kept)) * width),
        )


def kept_names(pipeline: aggregators.Pipeline, updates: Sequence[UpdateInput]) -> list[str]:
    """How the vectors that the rule keeps are named among a server's states."""
    keys = [update.peer_id for update in updates]
    return [f"{recipe.RULE_STATE}{name}" for name in pipeline.state_names(keys)]
