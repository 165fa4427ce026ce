"""A step that is replayed: the sum of its terms, and bodies that nobody vouches for."""

from __future__ import annotations

import math
import struct

import pytest
import torch

import compressors
from compressors import DecodeError
from compressors.core.context import ChunkContext
from compressors.core.replay import TERMS_MAX, Replay, Term, write

SIZE = 300


def terms(spelling: str, count: int) -> list[Term]:
    codec, generator = compressors.build(spelling), torch.Generator().manual_seed(0)
    found: list[Term] = []
    for number in range(count):
        x = 1e-3 * torch.randn(SIZE, generator=generator)
        body = codec.at(ChunkContext(common=7, own=100 + number)).encode(x, number)
        found.append(Term(0.25 * (number + 1), 100 + number, body))
    return found


@pytest.mark.parametrize("spelling", ["identity", "one-byte:16", "randk:0.2", "topk:0.1+int8+rice"])
def test_it_is_the_sum_of_its_terms_in_their_order(spelling: str) -> None:
    codec, sent = compressors.build(spelling), terms(spelling, 5)
    wanted, term, out = torch.zeros(SIZE), torch.empty(SIZE), torch.empty(SIZE)
    for share, own, body in sent:
        codec.at(ChunkContext(common=7, own=own)).decode(body, term)
        wanted += share * term
    Replay(codec).at(ChunkContext(common=7, own=0)).decode(write(sent), out)
    assert torch.equal(out, wanted)
    Replay(codec).decode(write([]), out)
    assert not out.any()


def test_a_step_of_too_many_terms_is_refused() -> None:
    replay, out = Replay(compressors.build("identity")), torch.full((1,), 7.0)
    one = Term(1.0, 0, struct.pack("<f", 0.5))
    with pytest.raises(DecodeError, match="more than 4096 terms"):
        replay.decode(write([one] * (TERMS_MAX + 1)), out)
    assert out.tolist() == [7.0]
    replay.decode(write([one] * TERMS_MAX), out)
    assert out.tolist() == [TERMS_MAX / 2]


@pytest.mark.parametrize("share", [math.nan, math.inf, -math.inf])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(DecodeError, match="a share is not finite"):
        Replay(compressors.build("identity")).decode(
            write([Term(share, 0, bytes(4 * SIZE))]), torch.empty(SIZE)
        )


def test_a_step_that_is_cut_off_is_refused_or_the_sum_of_fewer() -> None:
    replay, sent = Replay(compressors.build("topk:0.02"), ChunkContext(7, 0)), terms("topk:0.02", 3)
    body, ends = write(sent), {len(write(sent[:count])) for count in range(4)}
    for cut in range(len(body) + 1):
        out = torch.full((SIZE,), 7.0)
        if cut in ends:
            replay.decode(body[:cut], out)
            continue
        with pytest.raises(DecodeError):
            replay.decode(body[:cut], out)
        assert torch.equal(out, torch.full((SIZE,), 7.0))
