"""A round's updates as column chunks, decoded from their mapped files one chunk at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import aggregators
import compressors
from compressors.core import integers
from compressors.core.replay import Term
from exchange import links, recipe
from exchange.factors import CommonFactor
from exchange.job import UpdateInput
from exchange.payload import PayloadReader
from exchange.statefile import StateReader
from muster.files.digests import digest_bytes
from muster.model.layout import CHUNK_COORDINATES, COUNTERS, PARAMS, ParameterLayout, Vector
from muster.spec.model import RunSpec

DRAWN_BYTES = 4096  # of each update's first chunk


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The round's updates, and behind them the vectors that the rule keeps, as column chunks [n + kept, c].

    One scratch is used again and again.
    """

    layout: ParameterLayout
    links: Sequence[links.Link]
    readers: Sequence[PayloadReader]
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
        return digest_bytes(b"".join(reader.chunk(PARAMS, 0)[:DRAWN_BYTES] for reader in self.readers))

    def following(self, start: int, chunk: Tensor) -> list[Tensor]:
        """What is held of each uplink after the round, of the chunk that begins there."""
        index = start // CHUNK_COORDINATES
        return [link.following(row, index) for link, row in zip(self.links, chunk, strict=False)]

    def terms(self, start: int, shares: Sequence[float]) -> list[Term]:
        """The bodies of the chunk that begins there, of the updates that have a share."""
        index = start // CHUNK_COORDINATES
        return [
            Term(share, link.contexts.at(index).own, reader.chunk(PARAMS, index))
            for share, link, reader in zip(shares, self.links, self.readers, strict=True)
            if share
        ]


@contextmanager
def decoded(
    spec: RunSpec,
    updates: Sequence[UpdateInput],
    kept: Mapping[str, Path | None],
    layout: ParameterLayout,
) -> Generator[Decoded]:
    """Each update is decoded against its own base; `kept` are the files of the rule's vectors (None: zeros)."""
    with ExitStack() as stack:
        up = compressors.build(spec.compression.up)
        vectors: dict[str, StateReader] = {}
        for name, path in kept.items():
            vectors[name] = StateReader(path, layout.columns_size)
            stack.callback(vectors[name].close)
        factors: dict[str, CommonFactor] = {}  # by base
        readers: list[PayloadReader] = []
        uplinks: list[links.Link] = []
        for update in updates:
            base = update.base
            if base.digest not in factors:
                factors[base.digest] = CommonFactor(up, layout, base.version, base.factor)
                stack.callback(factors[base.digest].close)
            reader = PayloadReader(update.path)
            stack.callback(reader.close)
            readers.append(reader)
            contexts = links.contexts(
                spec, layout, base_digest=base.digest, round=base.round, peer_id=update.peer_id
            )
            spelling = reader.manifest.codec_of(PARAMS)
            link = links.Link(spec, spelling, contexts, estimate=base.estimate, factor=factors[base.digest])
            stack.callback(link.close)
            uplinks.append(link)
        width = min(CHUNK_COORDINATES, layout.columns_size)
        yield Decoded(
            layout=layout,
            links=uplinks,
            readers=readers,
            kept=vectors,
            scratch=torch.empty((len(readers) + len(vectors)) * width),
        )


def kept_names(pipeline: aggregators.Pipeline, updates: Sequence[UpdateInput]) -> list[str]:
    """How the vectors that the rule keeps are named among a server's states."""
    keys = [update.peer_id for update in updates]
    return [f"{recipe.RULE_STATE}{name}" for name in pipeline.state_names(keys)]
