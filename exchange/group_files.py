"""Groups in an update file: written by the sender, checked by whoever admits the update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

import compressors
from aggregators.core.gram import LONGEST_KEPT
from exchange.contexts import ChunkContexts
from exchange.groups import I64, Group, GroupCoder, flat_chunks
from exchange.payload import GroupSpec, PayloadReader, PayloadWriter
from exchange.request import UpdateRequest
from exchange.statefile import ScatteredStateWriter, StateReader
from muster.errors import UpdateRejected
from muster.model.layout import ParameterLayout
from muster.runtime.inorder import in_order

COUNT_MAX = 1 << 48  # of an integer: sums of so many for all peers and rounds stay within 64 bits


def specs_of(groups: Sequence[Group], layout: ParameterLayout) -> tuple[GroupSpec, ...]:
    """As a manifest has them, behind the model's own."""
    return tuple(
        GroupSpec(name=group.name, codec=group.spelling, size=group.vector(layout).size) for group in groups
    )


def bytes_max(groups: Sequence[Group], layout: ParameterLayout) -> int:
    """No honest update has more bytes of them."""
    contexts = ChunkContexts(layout=layout, base_digest="", round=0)
    return sum(GroupCoder(group, group.vector(layout), contexts).bytes_max() for group in groups)


def write_groups(
    writer: PayloadWriter,
    groups: Sequence[Group],
    tensors: Mapping[str, Mapping[str, Tensor]],
    request: UpdateRequest,
    contexts: ChunkContexts,
) -> dict[str, Path]:
    """Appends every group's chunks; gives the new state files of their feedbacks, synced, by name.

    Raises `TaskError` "train.bad_contribution", `StorageError`.
    """
    staged: dict[str, Path] = {}
    for group in groups:
        coder = GroupCoder(group, group.vector(contexts.layout), contexts)
        chunks = flat_chunks(group, coder.vector, tensors.get(group.name, {}))
        with ExitStack() as stack:
            states = _FeedbackStates(coder, request, stack)
            bodies = in_order(lambda index: states.encode(index, chunks[index]), len(chunks))  # noqa: B023  # used here
            stack.callback(bodies.close)
            for body in bodies:
                writer.append(group.name, body)
            staged |= states.finish()
    return staged


class _FeedbackStates:
    """What a group's feedback keeps at this sender, chunk by chunk."""

    def __init__(self, coder: GroupCoder, request: UpdateRequest, stack: ExitStack) -> None:
        self._coder = coder
        self._seed = request.seed
        self._readers: dict[str, StateReader] = {}
        self._writers: dict[str, ScatteredStateWriter] = {}
        for state in coder.feedback.state_names:
            path = request.state.get(self._key(state))
            self._readers[state] = StateReader(path, coder.vector.size)
            stack.callback(self._readers[state].close)
            self._writers[state] = ScatteredStateWriter(Path(f"{request.staged}.{coder.group.name}.{state}"))
            stack.callback(self._writers[state].close)

    def _key(self, state: str) -> str:
        return f"{self._coder.group.state_name}/{state}"

    def encode(self, index: int, values: Tensor) -> bytes:
        start, stop = self._coder.vector.chunk_bounds(index)
        kept = {state: reader.read(start, stop) for state, reader in self._readers.items()}
        body = self._coder.encode(index, values, kept, self._seed)
        for state, writer in self._writers.items():
            writer.write(kept[state], start)
        return body

    def finish(self) -> dict[str, Path]:
        for writer in self._writers.values():
            writer.finish()
        return {self._key(state): writer.path for state, writer in self._writers.items()}


def check_groups(reader: PayloadReader, groups: Sequence[Group], contexts: ChunkContexts) -> None:
    """That every chunk decodes, is finite, and that no group is longer than it may be; reads each once.

    Raises `UpdateRejected` "update.undecodable", "update.not_finite", "update.norm_too_large".
    """
    for group in groups:
        coder = GroupCoder(group, group.vector(contexts.layout), contexts)
        square = 0.0
        for index in range(coder.vector.chunk_count):
            start, stop = coder.vector.chunk_bounds(index)
            values = torch.empty(stop - start, dtype=coder.dtype)
            try:
                coder.decode(index, reader.chunk(group.name, index), values)
            except compressors.DecodeError as error:
                raise UpdateRejected(
                    "update.undecodable",
                    f"chunk {index} of the update's {group.name}: {error}",
                    cause="the peer's codec is another version, or the peer lies",
                    fix="install the same version of Muster on coordinator and peer",
                ) from error
            wide = values.double()
            if group.dtype == I64 and bool((wide.abs() > COUNT_MAX).any()):
                raise UpdateRejected(
                    "update.out_of_range",
                    f"the update's {group.name} has a value beyond {COUNT_MAX}, of which sums could overflow",
                    cause="the peer lies, or counts something else",
                )
            part = float(torch.dot(wide, wide))
            if not math.isfinite(part) and not bool(wide.isfinite().all()):
                at = start + int((~wide.isfinite()).nonzero()[0])
                raise UpdateRejected(
                    "update.not_finite",
                    f"the update has a NaN or infinite value in {group.name} {coder.vector.tensor_at(at)!r}",
                    cause="training diverged on the peer, or the peer lies",
                    fix="lower train.lr",
                )
            square += part
        _check_norm(group, math.sqrt(square))


def _check_norm(group: Group, norm: float) -> None:
    limit = LONGEST_KEPT if group.norm_max is None else min(group.norm_max, LONGEST_KEPT)
    if group.dtype == "I64" and group.norm_max is None:
        return
    if not norm <= limit:
        raise UpdateRejected(
            "update.norm_too_large",
            f"the L2 norm of the update's {group.name} is {norm:.6g}; at most {limit:.6g} is admitted",
            cause="training diverged on the peer, or the peer lies",
            fix="lower train.lr",
        )
