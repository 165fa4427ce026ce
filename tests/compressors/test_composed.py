"""Compositions: what they promise as codecs, what they lose beside their parts, and bodies that nobody vouches for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import compressors
from compressors import ChunkContext
from compressors.compose.composed import CODINGS
from methods import spelling as known

CONTRACTIVE = [
    "topk:0.01+auto",
    "topk:0.05+int8+rice",
    "topk:0.1+sign+varint+zstd",
    "topk:0.3+int4",
    "topk:0.02+bf16+varint",
    "topk:1.0+e3m0+zstd",
    "randk:0.1:unscaled",
    "randk:0.1:common:unscaled+int8+zstd",
    "fedzip:0.05",
    "fedzip:0.2",
    "kmeans:3",
    "kmeans:16+zstd",
    "int8+zstd",
    "bf16+zstd",
]
UNBIASED = [
    "randk:0.2",
    "randk:0.25:common",
    "randk:0.5+int8:stochastic",
    "terngrad+zstd",
    "randk:0.5+qsgd:4",
]
PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=25)
SIZE = 700
Decode = Callable[[str, bytes, int], torch.Tensor | None]  # see conftest
SIZES = st.one_of(st.integers(0, 600), st.sampled_from([4095, 65_537]))


@st.composite
def chunks(draw: st.DrawFn) -> torch.Tensor:
    size = draw(SIZES)
    x = torch.randn(size, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    match draw(st.sampled_from(["normal", "heavy", "sparse", "constant", "zero"])):
        case "heavy":
            x = x.sign() * torch.exp(3 * x)
        case "sparse":
            x *= torch.arange(size) % 97 == 5
        case "constant":
            x = torch.full((size,), -0.75)
        case "zero":
            x.zero_()
        case _:
            pass
    return x


def _trip(codec: compressors.Codec, x: torch.Tensor, seed: int = 1) -> torch.Tensor:
    out = torch.full_like(x, math.nan)
    codec.decode(memoryview(codec.encode(x, seed)), out)
    return out


# -- what they promise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", CONTRACTIVE)
@PROPERTY
@given(x=chunks())
def test_contraction_and_size(spelling: str, x: torch.Tensor) -> None:
    codec = compressors.build(spelling)
    assert codec.contractive
    body = codec.encode(x, 1)
    assert body == codec.encode(x, 1)
    assert len(body) <= codec.bytes_max(x.numel())
    out = _trip(codec, x)
    assert 0 < codec.delta(x.numel()) <= 1
    wide, error = x.double(), x.double() - out.double()
    bound = 1.0 if spelling.startswith("randk") else 1 - codec.delta(x.numel())  # randk's holds in the mean
    assert float(error @ error) <= bound * float(wide @ wide) * (1 + 1e-6)


@pytest.mark.parametrize("spelling", UNBIASED)
@pytest.mark.parametrize("size", [24, 250])
def test_unbiased_within_omega(spelling: str, size: int) -> None:
    codec, draws = compressors.build(spelling), 3000
    assert codec.unbiased
    x = torch.randn(size, generator=torch.Generator().manual_seed(size))
    mean, lost = torch.zeros(size, dtype=torch.float64), 0.0
    for seed in range(draws):
        place = ChunkContext(common=2 * seed, own=2 * seed + 1)
        out = _trip(codec.at(place), x, seed).double()
        mean += out / draws
        lost += float((out - x).square().sum()) / draws
    square = float(x.double().square().sum())
    omega = codec.omega(size)
    assert lost <= 1.1 * omega * square
    assert float((mean - x).norm()) <= 1.3 * math.sqrt(omega / draws * square)


def test_an_unscaled_random_mask_loses_what_it_declares() -> None:
    codec, x = compressors.build("randk:0.1:unscaled"), torch.randn(1000)
    lost = sum(
        float((_trip(codec.at(ChunkContext(0, own)), x) - x).square().sum() / x.square().sum())
        for own in range(500)
    )
    assert lost / 500 == pytest.approx(1 - codec.delta(1000), abs=0.005)


@pytest.mark.parametrize("spelling", [*CONTRACTIVE, *UNBIASED])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_dropped(spelling: str, bad: float) -> None:
    x = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    codec = compressors.build(spelling)
    x[5] = bad
    body, out = codec.encode(x, 0), torch.zeros(SIZE)
    if spelling == "bf16+zstd":
        codec.decode(body, out)
        assert not bool(torch.isfinite(out[5]))
        return
    with pytest.raises(compressors.DecodeError):
        codec.decode(body, out)


def test_a_composition_is_its_parts_one_after_the_other() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    kept = _trip(compressors.build("topk:0.1"), x)
    chosen = kept.nonzero().view(-1)
    wanted = torch.zeros(5000)
    wanted[chosen] = _trip(compressors.build("int8"), kept[chosen])
    for spelling in ("topk:0.1+int8", "topk:0.1+int8+varint", "topk:0.1+int8+rice+zstd"):
        assert torch.equal(_trip(compressors.build(spelling), x), wanted)


def test_the_smaller_coding_of_indices_is_taken_and_zstd_only_where_it_helps() -> None:
    even = torch.zeros(1 << 16)
    even[::120] = 1.0  # gaps of 119: a byte each as varints, with Rice 1 + 7 bits, or 8
    scattered = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    for x in (even, scattered):
        sizes = {c: len(compressors.build(f"topk:0.0085+{c}").encode(x, 0)) for c in CODINGS}
        assert sizes["auto"] == min(sizes.values())
        assert len(compressors.build("topk:0.0085+varint+zstd").encode(x, 0)) <= sizes["varint"]
    assert compressors.build("topk:0.0085+varint+zstd").encode(even, 0)[0] & 12 == 12
    assert compressors.build("topk:0.0085+rice+zstd").encode(scattered, 0)[0] & 4 == 0


def test_fedzip_is_the_composition_that_it_names() -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    named, spelled = compressors.build("fedzip:0.2"), compressors.build("topk:0.2+kmeans:2+zstd")
    assert named.encode(x, 0) == spelled.encode(x, 0)
    assert named.spelling == "fedzip:0.2"
    assert torch.unique(_trip(named, x)).numel() == 3
    assert 32 * 3000 / (8 * len(named.encode(x, 0))) > 25


def test_kmeans_against_lloyd_written_out() -> None:
    x = torch.randn(200, generator=torch.Generator().manual_seed(4)).double()
    centroids = torch.linspace(float(x.min()), float(x.max()), 5, dtype=torch.float64)
    nearest = torch.zeros(200, dtype=torch.long)
    for _ in range(4):
        nearest = (x[:, None] - centroids).abs().argmin(dim=1)
        centroids = torch.stack([x[nearest == c].mean() for c in range(5)])
    torch.testing.assert_close(_trip(compressors.build("kmeans:5"), x.float()), centroids[nearest].float())


# -- masks that both ends derive -----------------------------------------------------------------------------


def test_masks_differ_between_senders_and_rounds_unless_they_are_common() -> None:
    x = torch.ones(1000)
    own, common = compressors.build("randk:0.1"), compressors.build("randk:0.1:common")
    here, beside, later = (
        ChunkContext(common=1, own=2),
        ChunkContext(common=1, own=3),
        ChunkContext(common=4, own=5),
    )
    assert torch.equal(_trip(common.at(here), x), _trip(common.at(beside), x))
    assert not torch.equal(_trip(common.at(here), x), _trip(common.at(later), x))
    assert not torch.equal(_trip(own.at(here), x), _trip(own.at(beside), x))
    assert common.linear
    assert not own.linear


def test_bodies_of_a_common_mask_add_up() -> None:
    codec = compressors.build("randk:0.1:common").at(ChunkContext(common=9, own=0))
    x, y = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    bodies = [np.frombuffer(codec.encode(each, 0), dtype="<f4") for each in (x, y)]
    total = torch.empty(500)
    codec.decode((bodies[0] + bodies[1]).tobytes(), total)
    torch.testing.assert_close(total, _trip(codec, x + y))


@pytest.mark.parametrize("size", [1, 2, 9, 10, 11, 999])
def test_every_coordinate_is_as_likely_as_its_stratum_is_short(size: int) -> None:
    codec, draws = compressors.build("randk:0.3:unscaled"), 4000
    hits = torch.zeros(size)
    for own in range(draws):
        hits += _trip(codec.at(ChunkContext(0, own)), torch.ones(size))
    k = math.ceil(0.3 * size)
    assert float(hits.sum()) == k * draws
    lengths = [(j + 1) * size // k - j * size // k for j in range(k)]
    wanted = torch.tensor([1 / length for length in lengths for _ in range(length)])
    assert float((hits / draws - wanted).abs().max()) < 0.04


# -- bodies that nobody vouches for --------------------------------------------------------------------------


def _body(spelling: str) -> bytes:
    x = torch.randn(SIZE, generator=torch.Generator().manual_seed(3))
    return compressors.build(spelling).encode(x, 0)


@pytest.mark.parametrize("spelling", [*CONTRACTIVE, *UNBIASED])
def test_any_other_length_is_refused(decode: Decode, spelling: str) -> None:
    body = _body(spelling)
    assert decode(spelling, body, SIZE) is not None
    for cut in range(len(body)):
        assert decode(spelling, body[:cut], SIZE) is None
    for extra in (b"\0", b"\0" * 6, body):
        assert decode(spelling, body + extra, SIZE) is None


@pytest.mark.parametrize("spelling", [*CONTRACTIVE, *UNBIASED])
@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(data=st.data())
def test_damage_never_crashes(decode: Decode, spelling: str, data: st.DataObject) -> None:
    body = bytearray(_body(spelling))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, 8 * len(body) - 1))
        body[at // 8] ^= 1 << at % 8
    decode(spelling, bytes(body), SIZE)
    decode(spelling, data.draw(st.binary(max_size=600)), SIZE)
    decode(spelling, bytes(body[:1]) + data.draw(st.binary(max_size=100)), SIZE)


def _dense(payload: bytes) -> bytes:
    return b"\x08" + payload


def test_a_bomb_is_refused_before_it_is_opened() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    assert len(bomb) < 20_000
    with pytest.raises(compressors.DecodeError, match="zstd frame of 268435456 bytes where 712 are due"):
        compressors.build("int8+zstd").decode(_dense(bomb), torch.empty(SIZE))


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "should be a zstd frame is none"),
        (b"abcdefghijk", "should be a zstd frame is none"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(712)), "is damaged|of -1 bytes"),
        (zstandard.ZstdCompressor().compress(bytes(712)) + b"x", "damaged, or not the only one"),
        (zstandard.ZstdCompressor().compress(bytes(712)) * 2, "damaged, or not the only one"),
        (zstandard.ZstdCompressor().compress(bytes(711)), "711 bytes where 712 are due"),
    ],
)
def test_a_frame_that_is_not_the_one_due_is_refused(payload: bytes, why: str) -> None:
    with pytest.raises(compressors.DecodeError, match=why):
        compressors.build("int8+zstd").decode(_dense(payload), torch.empty(SIZE))


@pytest.mark.parametrize(
    ("spelling", "body", "why"),
    [
        ("topk:0.01+rice", b"\x02\x00\x00", "parts that topk:0.01.rice has not"),
        ("topk:0.01+rice", b"\x09\x00\x00", "parts that topk:0.01.rice has not"),
        ("topk:0.01+rice", b"\x11\x00\x00", "parts that topk:0.01.rice has not"),
        ("randk:0.1+int8+zstd", b"\x04", "has not"),
        ("topk:0.01+rice", b"\x01\x08\x00", "claims 8 values where 7 are due"),
        ("randk:0.01+int8", b"\x00\x06\x00", "claims 6 values where 7 are due"),
        ("topk:0.01+rice", b"\x01\xff\xff\xff\xff\xff", "a length is damaged"),
        ("topk:0.01+rice", b"\x01\x81\x00\x00", "a length is damaged"),
        ("topk:0.01+rice", b"\x01\x01\x05\x00", "end too early"),
        ("topk:0.01+rice", b"\x01\x01\x02\x00\x00" + b"\x00\x00\xc0\x7f", "not finite"),
        ("kmeans:2", b"\x00" * 8, "the body has 8 bytes where 96 are due"),
        ("kmeans:2", b"\x00\x00\xc0\x7f" + b"\x00" * 92, "a centroid is not finite"),
        ("kmeans:3", b"\x00" * 12 + b"\xf3" + b"\x00" * 139, "stands for no centroids"),
        ("kmeans:2", b"\x00" * 95 + b"\xf0", "values behind the last"),
    ],
)
def test_refusals_tell_why(spelling: str, body: bytes, why: str) -> None:
    with pytest.raises(compressors.DecodeError, match=why):
        compressors.build(spelling).decode(body, torch.empty(SIZE))


def test_the_run_spec_knows_what_stands_for_no_codec() -> None:
    assert {*CODINGS, "zstd"} == known.CODINGS


@pytest.mark.parametrize("junk", [b"", b"junk" * 9])
def test_a_frame_of_nothing_is_refused(junk: bytes) -> None:
    frame = zstandard.ZstdCompressor().compress(b"")
    with pytest.raises(compressors.DecodeError, match="a zstd frame of 0 bytes"):
        compressors.build("int8+zstd").decode(_dense(frame + junk), torch.empty(0))


@pytest.mark.parametrize("spelling", ["kmeans:" + "9" * 5000, "int8+zstd:" + "9" * 5000])
def test_numbers_that_are_none_are_refused_in_a_sentence(spelling: str) -> None:
    with pytest.raises(compressors.CodecError):
        compressors.build(spelling)
