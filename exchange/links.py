"""The uplink of each peer, where its feedback sends differences: what the coordinator holds of it, H_i.

    H_i += m_i;  the update of peer i is H_i

H_i is kept beside each version as a server's state, and changes only with a committed round, as the peer's own copy
does. So any rule goes with it, and any cohort. A body that is encoded with `identity` instead of the run's codec begins
anew: H_i = m_i; a peer sends one when it has lost its own copy. Under `masha` only such bodies move H_i, its anchor:
the update is H_i + m_i, and H_i stays.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

import compressors
from exchange.contexts import ChunkContexts
from exchange.factors import CommonFactor
from exchange.payload import BESIDE, PayloadReader
from exchange.statefile import StateReader
from muster.model.layout import BUFFERS, PARAMS, Column, ParameterLayout
from muster.seeds import assignment_seed
from muster.spec.model import RunSpec
from muster.work import TRAIN

RESET = "identity"


def state_name(peer_id: str) -> str:
    """The name under which a peer's estimate is kept."""
    return f"up/estimate/{peer_id}"


def sends_differences(spec: RunSpec) -> bool:
    """Whether the run's feedback sends differences, so that an estimate of each peer is kept."""
    return bool(compressors.build_feedback(spec.compression.feedback).receiver_state_names)


def shares_factor(spec: RunSpec) -> bool:
    """Whether the updates of a round are read with a factor that all senders have in common, see `exchange.factors`."""
    return compressors.build(spec.compression.up).shares_factor


def codecs(spec: RunSpec, version: int) -> tuple[str, ...]:
    """The spellings with which an update made against this version may be encoded, the usual one first."""
    table = spec.compression
    feedback = compressors.build_feedback(table.feedback)
    usual = compressors.build(feedback.codec_in(table.up, version + 1, table.warm_up_rounds)).spelling
    return (usual, RESET) if sends_differences(spec) and usual != RESET else (usual,)


def contexts(
    spec: RunSpec, layout: ParameterLayout, *, base_digest: str, round: int, peer_id: str, role: str = TRAIN
) -> ChunkContexts:
    """Of the chunks of this peer's update, made in this role."""
    sender = assignment_seed(spec.seed, role, round, peer_id)
    return ChunkContexts(layout=layout, base_digest=base_digest, round=round, sender=sender)


class Link:
    """One peer's uplink in one round: decodes its chunks to its update."""

    def __init__(
        self,
        spec: RunSpec,
        spelling: str,
        contexts: ChunkContexts,
        *,
        estimate: Path | None,
        factor: CommonFactor | None,
    ) -> None:
        """`factor` is that of all updates against this base; whoever opened it closes it."""
        self._codec = compressors.build(spelling)
        self._beside = compressors.build(BESIDE[BUFFERS])
        self.contexts = contexts
        self._factor = factor
        self._estimate: StateReader | None = None
        self._follows = True
        if sends_differences(spec):
            begins = spelling == RESET and spec.compression.up != RESET
            self._follows = begins or compressors.build_feedback(spec.compression.feedback).receiver_follows
            self._estimate = StateReader(None if begins else estimate, contexts.layout.size)

    def decode(self, body: memoryview, out: Tensor, index: int) -> None:
        """Fills `out` [c], chunk `index`. Raises `DecodeError`."""
        context = self.contexts.at(index)
        if self._factor is not None:
            context = self._factor.at(context, index)
        self._codec.at(context).decode(body, out)
        if self._estimate is not None:
            start = self.contexts.layout.chunk_bounds(index)[0]
            out += self._estimate.read(start, start + len(out))

    def read(self, reader: PayloadReader, column: Column, out: Tensor) -> None:
        """Fills `out` [c], a column of parameters or of buffers. Raises `DecodeError`."""
        body = reader.chunk(column.group, column.index)
        if column.group == PARAMS:
            self.decode(body, out, column.index)
        else:
            self._beside.decode(body, out)

    def following(self, update: Tensor, start: int) -> Tensor:
        """What is held of it after a round in which its update was `update` [c] from coordinate `start` on."""
        if self._follows or self._estimate is None:
            return update
        return self._estimate.read(start, start + len(update))

    def close(self) -> None:
        if self._estimate is not None:
            self._estimate.close()
