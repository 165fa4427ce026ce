"""What a round makes of the groups that its updates carry, and how what is kept of them moves.

    folded = fold(values of the updates)        chunk by chunk, see `exchange.groups.Group.fold`
    kept   = folded, or kept + folded           see `Group.keep`

Updates are taken in the order in which they are given, so that a round that is computed again gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import aggregators
from exchange.declared_groups import groups_of_roles
from exchange.decoded import Decoded
from exchange.groups import (
    ADD,
    ANY,
    DTYPES,
    FOLDS,
    I64,
    MAX,
    MEAN,
    MIN,
    SHARES,
    Group,
    GroupCoder,
)
from exchange.job import AggregationJob
from exchange.payload import PayloadReader
from exchange.recipe import AggregationRefused
from exchange.statefile import StateReader, StateWriter
from muster.model.layout import CHUNK_COORDINATES, ParameterLayout, Vector
from muster.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class GroupUpdates:
    """One group in all updates of a round."""

    group: Group
    vector: Vector
    coders: Sequence[GroupCoder]
    readers: Sequence[PayloadReader]

    def rows(self, index: int) -> Iterator[Tensor]:
        """Of chunk `index`, one update's after the other's, [c] each, in the same memory."""
        start, stop = self.vector.chunk_bounds(index)
        row = torch.empty(stop - start, dtype=DTYPES[self.group.dtype])
        for coder, reader in zip(self.coders, self.readers, strict=True):
            coder.decode(index, reader.chunk(self.group.name, index), row)
            yield row


def advance(
    updates: GroupUpdates, before: Path | None, out: Path, *, shares: Sequence[float], faults: int, seed: int
) -> str:
    """Writes what is kept of a group after the round; gives its digest. Raises `AggregationRefused`, `StorageError`.

    `before` has what was kept until then, None for zeros; `shares` are those that the run's rule has given the updates.
    """
    group, vector = updates.group, updates.vector
    dtype = DTYPES[group.dtype]
    fold = _RuleFold(updates, faults, seed) if group.fold not in FOLDS else _Fold(updates, shares)
    with ExitStack() as stack:
        present = StateReader(before, vector.size, dtype)
        stack.callback(present.close)
        writer = StateWriter(out)
        stack.callback(writer.close)
        for index in range(vector.chunk_count):
            start, stop = vector.chunk_bounds(index)
            new = fold.chunk(index).to(dtype)
            if group.keep == ADD:
                new = new.add_(present.read(start, stop))
            if new.is_floating_point() and not bool(new.isfinite().all()):
                raise AggregationRefused(f"the group {group.name!r} gives values that are not finite")
            writer.write(new)
        return writer.finish()


class _Fold:
    """A fold that takes one update after the other, in a chunk's memory."""

    def __init__(self, updates: GroupUpdates, shares: Sequence[float]) -> None:
        self._updates = updates
        n = len(updates.readers)
        self._factors = list(shares) if updates.group.fold == SHARES else [1.0] * n

    def chunk(self, index: int) -> Tensor:
        group = self._updates.group
        start, stop = self._updates.vector.chunk_bounds(index)
        if group.fold in (MAX, MIN, ANY):
            return self._extreme(index, group.fold)
        total = torch.zeros(stop - start, dtype=torch.int64 if group.dtype == I64 else torch.float64)
        for row, factor in zip(self._updates.rows(index), self._factors, strict=True):
            total.add_(row, alpha=factor if total.is_floating_point() else 1)
        return total.div_(len(self._factors)) if group.fold == MEAN else total

    def _extreme(self, index: int, fold: str) -> Tensor:
        found: Tensor | None = None
        for row in self._updates.rows(index):
            values = row.ne(0).to(row.dtype) if fold == ANY else row
            if found is None:
                found = values.clone()
            else:
                (torch.minimum if fold == MIN else torch.maximum)(found, values, out=found)
        assert found is not None  # a round that is aggregated has an update
        return found


class _RuleFold:
    """An aggregation rule over the group's own values, with the round's f."""

    def __init__(self, updates: GroupUpdates, faults: int, seed: int) -> None:
        self._updates = updates
        n, size = len(updates.readers), updates.vector.size
        try:
            pipeline = aggregators.build(updates.group.fold, faults=faults)
            survey = aggregators.Survey(pipeline, n, size, seed=seed)
            if survey.needed:
                for index in range(updates.vector.chunk_count):
                    survey.add(index * CHUNK_COORDINATES, self._matrix(index))
            self._plan = survey.plan()
        except aggregators.RuleError as error:
            raise AggregationRefused(f"the group {updates.group.name!r}: {error}") from error

    def _matrix(self, index: int) -> Tensor:
        return torch.stack([row.clone() for row in self._updates.rows(index)])

    def chunk(self, index: int) -> Tensor:
        matrix = self._matrix(index)
        out = torch.empty(matrix.shape[1])
        self._plan.reduce(matrix, out)
        return out


def advance_all(
    job: AggregationJob, layout: ParameterLayout, source: Decoded, shares: Sequence[float]
) -> dict[str, str]:
    """Writes what is kept of each of the run's groups after a round; gives the files' digests by name. Raises
    `AggregationRefused`, `StorageError`."""
    digests: dict[str, str] = {}
    for group in groups_of_roles(job.spec, [update.role for update in job.updates]):
        if not group.keep:
            continue
        # Updates of another role have other groups.
        here = [i for i, reader in enumerate(source.readers) if reader.manifest.codec_of(group.name)]
        vector = group.vector(layout)
        updates = GroupUpdates(
            group=group,
            vector=vector,
            coders=[GroupCoder(group, vector, source.links[i].contexts) for i in here],
            readers=[source.readers[i] for i in here],
        )
        digests[group.state_name] = advance(
            updates,
            job.states.get(group.state_name),
            job.states_out[group.state_name],
            shares=[shares[i] for i in here],
            faults=job.spec.faults_of(job.cohort),
            seed=derive_seed(job.spec.seed, "group", group.name, job.round, source.drawn()),
        )
    return digests


def zeros(vector: Vector) -> Mapping[str, Tensor]:
    """What is kept of a group before any round has moved it."""
    return {spec.name: torch.zeros(spec.shape, dtype=DTYPES[spec.dtype]) for spec in vector.tensors}


def read_kept(vector: Vector, path: Path | None) -> Mapping[str, Tensor]:
    """What is kept of a group, by the names of its tensors, the caller's own. Raises `StorageError`."""
    found = zeros(vector)
    if path is None:
        return found
    reader = StateReader(path, vector.size, DTYPES[vector.tensors[0].dtype])
    try:
        for spec, offset in zip(vector.tensors, vector.offsets, strict=True):
            found[spec.name].view(-1).copy_(reader.read(offset, offset + spec.size))
    finally:
        reader.close()
    return found
