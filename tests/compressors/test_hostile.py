"""Bodies that nobody vouches for: each decodes to something sane or raises DecodeError, nothing else."""

import struct
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compressors

SPELLINGS = [
    "identity",
    "bf16",
    "int8",
    "topk:0.05",
    "topk:1.0",
    "ferret:40",
    "powersgd:2",
    "powersgd:2:common",
]
SIZE = 700  # two whole int8 blocks and a part
Decode = Callable[[str, bytes, int], torch.Tensor | None]  # see conftest
PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=300)


def _body(spelling: str, size: int = SIZE) -> bytes:
    x = torch.randn(size, generator=torch.Generator().manual_seed(3))
    return compressors.build(spelling).encode(x, 0)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_any_other_length_is_refused(decode: Decode, spelling: str) -> None:
    body = _body(spelling)
    assert decode(spelling, body, SIZE) is not None
    for cut in range(len(body)):
        assert decode(spelling, body[:cut], SIZE) is None
    for extra in (b"\0", b"\0" * 6, body):
        assert decode(spelling, body + extra, SIZE) is None
    # A top-k body tells of the chunk's size only that its indices lie within it: near sizes may do as well.
    near = set() if not spelling.startswith("topk") else {SIZE - 1, SIZE + 1, SIZE + 256}
    if spelling.startswith(
        "ferret"
    ):  # and Ferret's only that its blocks have as many coordinates as inner products
        near = {SIZE - 1, SIZE + 1, SIZE + 256, 1 << 18}
    for size in {0, 1, SIZE - 1, SIZE + 1, SIZE + 256, 1 << 18} - near:
        assert decode(spelling, body, size) is None


@pytest.mark.parametrize("spelling", SPELLINGS)
@PROPERTY
@given(data=st.data())
def test_flipped_bits_never_crash(decode: Decode, spelling: str, data: st.DataObject) -> None:
    body = bytearray(_body(spelling))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, 8 * len(body) - 1))
        body[at // 8] ^= 1 << at % 8
    decode(spelling, bytes(body), SIZE)


@pytest.mark.parametrize("spelling", SPELLINGS)
@PROPERTY
@given(body=st.binary(max_size=6000))
def test_random_bytes_never_crash(decode: Decode, spelling: str, body: bytes) -> None:
    decode(spelling, body, SIZE)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), -1.0, 3e38, 2.0**121])
def test_int8_refuses_scales_that_are_none(decode: Decode, scale: float) -> None:
    body = bytearray(_body("int8"))
    struct.pack_into("<f", body, 4, scale)
    assert decode("int8", bytes(body), SIZE) is None


def test_int8_refuses_the_level_that_no_encoder_writes(decode: Decode) -> None:
    body = bytearray(_body("int8"))
    body[-1] = 0x80
    assert decode("int8", bytes(body), SIZE) is None
    body[-1] = 0x81
    assert decode("int8", bytes(body), SIZE) is not None


def _topk(counts: list[int], values: list[float], low: list[int]) -> bytes:
    return struct.pack(f"<{len(counts)}I{len(values)}f{len(low)}H", *counts, *values, *low)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (_topk([3], [1, 2, 3], [4, 5, 5]), "strictly increasing"),
        (_topk([3], [1, 2, 3], [4, 6, 5]), "strictly increasing"),
        (_topk([3], [1, 2, 3], [4, 5, SIZE]), "past the chunk"),
        (_topk([3], [1, 2, 3], [4, 5, 65535]), "past the chunk"),
        (_topk([3], [1, float("nan"), 3], [4, 5, 6]), "not finite"),
        (_topk([3], [1, float("inf"), 3], [4, 5, 6]), "not finite"),
        (_topk([2], [1, 2, 3], [4, 5, 6]), "bytes where 16 are due"),
        (_topk([36], [1] * 36, list(range(36))), "claims 36 values where 35 are due at most"),
        (_topk([2**32 - 1], [1, 2, 3], [4, 5, 6]), "claims 4294967295 values"),
        (b"\0\0\0", "4 are due at least"),
    ],
)
def test_topk_refuses_bad_indices_counts_and_values(body: bytes, why: str) -> None:
    out = torch.full((SIZE,), 7.0)
    with pytest.raises(compressors.DecodeError, match=why):
        compressors.build("topk:0.05").decode(body, out)
    assert torch.equal(out, torch.full((SIZE,), 7.0))


def test_topk_segments_hold_indices_beyond_16_bits() -> None:
    size = 3 * 65_536
    out = torch.empty(size)
    compressors.build("topk:0.05").decode(_topk([1, 0, 2], [1, 2, 3], [9, 0, 65_535]), out)
    assert out.nonzero().view(-1).tolist() == [9, 131_072, 196_607]
    with pytest.raises(compressors.DecodeError, match="past the chunk"):
        compressors.build("topk:0.05").decode(
            _topk([1, 0, 2], [1, 2, 3], [9, 0, 65_535]), torch.empty(size - 1)
        )


def test_topk_may_hold_fewer_values_than_k() -> None:
    out = torch.full((SIZE,), 7.0)
    compressors.build("topk:0.05").decode(_topk([1], [2.5], [3]), out)
    assert out[3] == 2.5
    assert int(out.count_nonzero()) == 1
