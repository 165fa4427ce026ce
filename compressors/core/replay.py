"""A step sent as what it was made of: the bodies that came up, and the share of each in the step.

    step = sum_i share_i C_i(body_i)

Where updates are short, all of them together are shorter than the step: with 16 peers and a byte for each of 16
directions (`compressors.sketches.one_byte`), 256 bytes and their shares. Nothing is lost on the way down, so no
feedback is needed. Each term is scaled and then added, two operations that every machine rounds in the same way, in the
order in which they stand, so that all replicas have the same bytes.

Body: for each of at most 4096 terms its share, float64; the sender's own seed for the chunk (`ChunkContext.own`),
uint64; the length of the term's body as a varint; the body.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from compressors.core.codec import Codec, DecodeError, check_chunk
from compressors.core.context import NO_CONTEXT, ChunkContext
from compressors.core.scratch import scratch
from compressors.core.varint import read_varint, varint

PREFIX = "replay:"  # and the spelling of the bodies' codec: what a replayed step's manifest names
TERMS_MAX = 1 << 12  # a longer sum would keep the peers busier than a version costs that is sent whole
_HEAD = struct.Struct("<dQ")


class Term(NamedTuple):
    """One summand: its share of the step, the sender's seed for the chunk, and its body."""

    share: float
    own: int
    body: bytes | memoryview


class Replay:
    """Decodes the bodies of `write`, whose terms are encoded with `codec`."""

    def __init__(self, codec: Codec, place: ChunkContext = NO_CONTEXT) -> None:
        self._codec = codec
        self._place = place

    def at(self, place: ChunkContext) -> Replay:
        return Replay(self._codec, place)

    def decode(self, body: bytes | memoryview, out: Tensor) -> None:
        """Fills out [size]. Raises `DecodeError`, and then leaves `out` as it was."""
        check_chunk(out)
        size, rest = out.numel(), memoryview(body)
        total = scratch("replay.total", size, torch.float32, out.device).zero_()
        term = scratch("replay.term", size, torch.float32, out.device)
        count = 0
        while rest:
            count += 1
            if count > TERMS_MAX:
                raise DecodeError(f"a replayed step has more than {TERMS_MAX} terms")
            if len(rest) < _HEAD.size:
                raise DecodeError("a replayed step ends within a term")
            share, own = _HEAD.unpack_from(rest)
            length, rest = read_varint(rest[_HEAD.size :])
            if length > len(rest) or not isfinite(share):
                raise DecodeError("a replayed step ends within a term, or a share is not finite")
            self._codec.at(self._place._replace(own=own)).decode(rest[:length], term)
            total.add_(term.mul_(share))
            rest = rest[length:]
        out.detach().copy_(total)


def write(terms: Sequence[Term]) -> bytes:
    """The body of at most `TERMS_MAX` terms."""
    parts: list[bytes | memoryview] = []
    for share, own, body in terms:
        parts += [_HEAD.pack(share, own), varint(len(body)), body]
    return b"".join(parts)
