"""Coded indices against a coder written bit by bit, their sizes against the entropy, and hostile bytes."""

from __future__ import annotations

from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressors import DecodeError
from compressors.sparsifiers import indices

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=200)
CODERS: dict[str, Any] = {
    "rice": (indices.encode_rice, indices.decode_rice, indices.rice_bytes_max),
    "varint": (indices.encode_varint, indices.decode_varint, indices.varint_bytes_max),
}


@st.composite
def index_sets(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], int]:
    size = draw(st.sampled_from([1, 2, 7, 100, 300, 5000, 1 << 18]))
    count = draw(st.integers(0, min(size, 3000)))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    match draw(st.sampled_from(["random", "first", "last", "clustered"])):
        case "first":
            chosen = np.arange(count)
        case "last":
            chosen = np.arange(size - count, size)
        case "clustered":
            half = count // 2
            chosen = np.concatenate([np.arange(half), np.arange(size - (count - half), size)])
        case _:
            chosen = np.sort(random.choice(size, count, replace=False))
    return chosen.astype(np.intp), size


def _rice_by_bits(chosen: np.ndarray[Any, Any], shift: int) -> bytes:
    bits: list[int] = []
    last = -1
    for index in chosen.tolist():
        gap = index - last - 1
        last = index
        bits += [1] * (gap >> shift) + [0] + [gap >> j & 1 for j in range(shift)]
    bits += [0] * (-len(bits) % 8)
    body = [sum(bit << j for j, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8)]
    return bytes([shift, *body])


@pytest.mark.parametrize("coder", CODERS)
@PROPERTY
@given(drawn=index_sets())
def test_round_trip_within_the_largest_size(coder: str, drawn: tuple[np.ndarray[Any, Any], int]) -> None:
    chosen, size = drawn
    encode, decode, bytes_max = CODERS[coder]
    body = encode(chosen, size)
    assert np.array_equal(decode(body, chosen.size, size), chosen)
    for k in {chosen.size, chosen.size + 1, 2 * chosen.size + 3, size}:
        if chosen.size <= k <= size:  # fewer than k may be sent where k are the most
            assert len(body) <= bytes_max(k, size)


@PROPERTY
@given(drawn=index_sets())
def test_rice_is_written_as_its_definition_has_it(drawn: tuple[np.ndarray[Any, Any], int]) -> None:
    chosen, size = drawn
    body = indices.encode_rice(chosen, size)
    assert body == _rice_by_bits(chosen, body[0])
    around = indices.rice_shift(chosen.size, size)
    tried = [len(_rice_by_bits(chosen, b)) for b in (around - 1, around, around + 1) if b >= 0]
    assert len(body) == min(tried)


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
def test_rice_is_within_two_percent_of_the_entropy(density: float) -> None:
    size = 1 << 20
    count = round(density * size)
    chosen = np.sort(np.random.default_rng(0).choice(size, count, replace=False))
    bits = 8 * len(indices.encode_rice(chosen, size)) / count
    entropy = -(density * log2(density) + (1 - density) * log2(1 - density)) / density
    assert entropy < bits < 1.02 * entropy


def test_varints_are_leb128() -> None:
    chosen = np.array([0, 128, 257, 256 + 16_384 + 2, 80_000])
    gaps = [0, 127, 128, 16_384, 63_357]
    body = indices.encode_varint(chosen, 1 << 18)
    assert body == bytes([0, 127, 0x80, 1, 0x80, 0x80, 1, 63_357 & 127 | 128, 63_357 >> 7 & 127 | 128, 3])
    assert np.array_equal(np.cumsum(np.array(gaps) + 1) - 1, chosen)


@pytest.mark.parametrize("coder", CODERS)
@PROPERTY
@given(data=st.data())
def test_any_bytes_give_increasing_indices_within_the_chunk_or_are_refused(
    coder: str, data: st.DataObject
) -> None:
    chosen, size = data.draw(index_sets())
    encode, decode, _ = CODERS[coder]
    body = bytearray(encode(chosen, size))
    for _ in range(data.draw(st.integers(0, 4)) if body else 0):
        body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    body += data.draw(st.binary(max_size=3))
    count = data.draw(st.sampled_from([chosen.size, chosen.size + 1, 0, 10**9]))
    try:
        found = decode(bytes(body), count, size)
    except DecodeError:
        return
    assert found.size == count
    assert count == 0 or (found[0] >= 0 and found[-1] < size and bool((np.diff(found) > 0).all()))


@pytest.mark.parametrize(
    ("coder", "body", "count", "why"),
    [
        ("rice", b"", 0, "no Rice parameter"),
        ("rice", b"\x19\x00", 1, "too large"),
        ("rice", b"\x02", 1, "end too early"),
        ("rice", b"\x00" + b"\xff" * 20, 3, "past the chunk"),
        ("rice", b"\x18" + b"\xfe\xff\xff\xff\x00", 1, "past the chunk"),
        ("rice", b"\x02\x00\x00", 1, "behind the last"),
        ("rice", b"\x02\x80", 1, "behind the last"),
        ("rice", b"\x02\x80", 10**12, "end too early"),
        ("varint", b"\x80", 1, "end too early"),
        ("varint", b"\x80\x00", 1, "more bytes than it needs"),
        ("varint", b"\xff\xff\xff\xff\xff\xff\xff", 1, "past the chunk"),
        ("varint", b"\x64", 1, "past the chunk"),
        ("varint", b"\x01\x01", 1, "behind the last"),
    ],
)
def test_refusals_tell_why(coder: str, body: bytes, count: int, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        CODERS[coder][1](body, count, 100)
