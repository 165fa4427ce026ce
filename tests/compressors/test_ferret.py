"""Ferret against its equations, written out with numpy's Philox."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Philox
from numpy.typing import NDArray
from torch import Tensor

import compressors
from compressors.core.context import ChunkContext
from compressors.sketches.directions import draw

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=60)


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def uneven(size: int, seed: int = 0) -> Tensor:
    """Blocks of very different norms, some of them zero."""
    steps = torch.linspace(-6, 4, size).exp()
    return normal(size, seed) * torch.where(torch.arange(size) < size // 5, 0.0, steps)


def lonely(size: int, seed: int = 0) -> Tensor:
    x = torch.zeros(size)
    x[size // 3] = 2.0
    return x


def decoded(spelling: str, x: Tensor, common: int = 0) -> Tensor:
    codec = compressors.build(spelling).at(ChunkContext(common, own=3))
    body = codec.encode(x, seed=1)
    assert len(body) <= codec.bytes_max(x.numel())
    out = torch.full_like(x, math.nan)
    codec.decode(memoryview(body), out)
    return out


def relative_error(x: Tensor, out: Tensor) -> float:
    return float((out.double() - x.double()).square().sum() / x.double().square().sum())


def counts_of(body: bytes, blocks: int) -> list[int]:
    return list(struct.unpack_from(f"<{blocks}H", body))


def vectors(common: int, block: int, count: int, length: int) -> NDArray[np.float64]:
    """[count, length] of +-1 / sqrt(length), as the docstring says they are drawn."""
    found = np.empty((count, length))
    for k in range(count):
        key = np.array([common, 0], dtype=np.uint64)
        words = Philox(key=key, counter=np.array([0, k // 8, block, 0], dtype=np.uint64)).random_raw(
            -(-length // 8)
        )
        signs = words.view(np.uint8)[:length] >> (k % 8) & 1
        found[k] = np.where(signs == 1, 1, -1) / math.sqrt(length)
    return found


@pytest.mark.parametrize("key", [0, 1, 2**63 + 5, 2**64 - 1])
def test_the_random_words_are_those_of_numpys_philox(key: int) -> None:
    words = np.empty(400, dtype=np.uint64)
    draw(words, np.uint64(key), 7, 900)
    wanted = Philox(
        key=np.array([key, 0], dtype=np.uint64), counter=np.array([0, 7, 900, 0], dtype=np.uint64)
    )
    assert np.array_equal(words, wanted.random_raw(400))


@pytest.mark.parametrize(("size", "k"), [(1000, 64), (1001, 50), (333, 2), (4097, 1000), (100, 90)])
@pytest.mark.parametrize("make", [normal, uneven, lonely])
def test_against_the_equations(size: int, k: int, make: type) -> None:
    x, common = make(size), 77
    codec = compressors.build(f"ferret:{k}").at(ChunkContext(common, own=0))
    body = codec.encode(x, 0)
    width = math.ceil(size / math.ceil(k / 16))
    blocks = math.ceil(size / width)
    counts = counts_of(body, blocks)
    assert sum(counts) <= k
    assert len(body) == 2 * blocks + 4 * sum(counts)
    wanted = np.empty(size)
    for block, count in enumerate(counts):
        part = x.double().numpy()[block * width : (block + 1) * width]
        assert min(2, part.size) <= count <= part.size
        if count == part.size:
            estimate = part
        else:
            v, rho = vectors(common, block, count, part.size), 1 / part.size
            estimate = v.T @ (v @ part) / (rho * count)
        wanted[block * width : (block + 1) * width] = estimate
    out = decoded(f"ferret:{k}", x, common)
    np.testing.assert_allclose(out.double().numpy(), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("size", "k"), [(900, 64), (1000, 16), (512, 2), (700, 500)])
@pytest.mark.parametrize("make", [normal, uneven, lonely])
def test_unbiased_with_the_declared_variance(size: int, k: int, make: type) -> None:
    """The mean of T draws errs by sqrt(variance / T); a bias would stay."""
    x, draws = make(size), 400
    mean, variance = torch.zeros(size).double(), 0.0
    for common in range(draws):
        out = decoded(f"ferret:{k}", x, common)
        mean += out.double() / draws
        variance += relative_error(x, out) / draws
    assert variance <= compressors.build(f"ferret:{k}").omega(size) * 1.1
    assert float((mean - x).square().sum() / x.double().square().sum()) <= 1.3**2 * variance / draws + 1e-12


def test_the_declared_variance_is_of_use() -> None:
    codec = compressors.build("ferret:4096")
    assert codec.omega(1 << 18) < 1.07 * (1 << 18) / 4096
    x = normal(1 << 18)
    found = sum(relative_error(x, decoded("ferret:4096", x, common)) for common in range(4)) / 4
    assert 0.9 * codec.omega(1 << 18) < found < codec.omega(1 << 18)


@pytest.mark.parametrize(("size", "k"), [(1 << 18, 256), (1 << 16, 1024), (1 << 15, 8192), (1 << 12, 2048)])
def test_cosine_law(size: int, k: int) -> None:
    x = normal(size, seed=5)
    cosines = [
        float(torch.cosine_similarity(x, decoded(f"ferret:{k}", x, common), dim=0)) for common in range(20)
    ]
    assert sum(cosines) / 20 == pytest.approx(1 / math.sqrt(1 + size / k), rel=0.1)


def test_inner_products_are_shared_out_by_norm() -> None:
    x = normal(64 * 100, seed=2)
    x[:100] *= 100
    counts = counts_of(compressors.build("ferret:1024").encode(x, 0), 64)
    assert counts[0] == 100  # as many as coordinates: sent as they are
    assert torch.equal(decoded("ferret:1024", x)[:100], x[:100])
    x = normal(64 * 1000, seed=2)
    x[:1000] *= 21
    counts = counts_of(compressors.build("ferret:1024").encode(x, 0), 64)
    assert sum(counts) == 1024
    assert counts[0] == pytest.approx(2 + 896 / 4, rel=0.1)  # the others have 63 / 21 = 3 times its norm
    assert max(counts[1:]) - min(counts[1:]) <= 2


def test_a_block_of_large_norm_errs_less_than_in_equal_shares() -> None:
    x = uneven(1 << 14)
    found = sum(relative_error(x, decoded("ferret:512", x, common)) for common in range(10)) / 10
    assert found < 0.5 * compressors.build("ferret:512").omega(1 << 14)


@PROPERTY
@given(
    size=st.one_of(st.integers(0, 3000), st.just(1 << 18)), k=st.integers(2, 65_535), seed=st.integers(0, 99)
)
def test_any_size_and_k(size: int, k: int, seed: int) -> None:
    x = uneven(size, seed) if seed % 2 else normal(size, seed)
    before = x.clone()
    out = decoded(f"ferret:{k}", x)
    assert torch.equal(x, before)
    assert bool(torch.isfinite(out).all())
    codec = compressors.build(f"ferret:{k}")
    assert codec.bytes_max(size) <= 4.2 * min(size, k) + 2
    if size <= k:
        assert torch.equal(out, x)
        assert codec.omega(size) == 0


@pytest.mark.parametrize("k", [2, 3, 15, 16, 17, 100, 1000, 1025, 4096, 65_535])
def test_the_bound_grows_with_the_chunk_and_holds(k: int) -> None:
    """Bounds are taken of the largest chunk, also where the last one is smaller and in more blocks."""
    codec = compressors.build(f"ferret:{k}")
    bounds = [codec.bytes_max(size) for size in range(5001)]
    assert bounds == sorted(bounds)
    for size in range(0, 5001, 97):
        assert len(codec.encode(normal(size), 0)) <= bounds[size]


def test_one_pool_for_all_senders_of_a_round() -> None:
    x, codec = normal(5000), compressors.build("ferret:64")
    body = codec.at(ChunkContext(common=9, own=1)).encode(x, 5)
    assert codec.at(ChunkContext(common=9, own=2, pieces=((0, 50, 100),))).encode(x, 6) == body
    assert codec.at(ChunkContext(common=8, own=1)).encode(x, 5) != body
    assert codec.encode(x, 5) == codec.at(ChunkContext(common=0, own=1)).encode(x, 7)
    both, one, other = (decoded("ferret:64", y, 9) for y in (x, 3 * x, -x))
    torch.testing.assert_close(one + other, 2 * both)
    # Any key there may be, the sum of two included.
    assert codec.at(ChunkContext(common=2**64 + 9, own=0)).encode(x, 0) == body


def test_flags_and_spellings() -> None:
    codec = compressors.build("ferret:064")
    assert codec.spelling == "ferret:64"
    assert (codec.unbiased, codec.contractive, codec.linear) == (True, False, False)
    with pytest.raises(compressors.CodecError, match="not contractive"):
        codec.delta(5)
    for wrong in ("ferret", "ferret:", "ferret:-4", "ferret:4.0", "ferret:many"):
        with pytest.raises(compressors.CodecError, match="such as ferret:4096"):
            compressors.build(wrong)
    for wrong in ("ferret:1", "ferret:0", "ferret:65536", "ferret:" + "9" * 5000):
        with pytest.raises(compressors.CodecError, match="from 2 to 65535"):
            compressors.build(wrong)


SIZE, GOOD = 600, (20, 12)  # two blocks of 300 for ferret:32


def _ferret(counts: tuple[int, ...], scalars: list[float]) -> bytes:
    return struct.pack(f"<{len(counts)}H{len(scalars)}f", *counts, *scalars)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "4 are due at least"),
        (_ferret((20,), []), "4 are due at least"),
        (_ferret(GOOD, [1] * 31), "bytes where 132 are due"),
        (_ferret(GOOD, [1] * 33), "bytes where 132 are due"),
        (_ferret((20, 13), [1] * 33), "claims 33 inner products where 32"),
        (_ferret((300, 300), [1] * 600), "claims 600 inner products"),
        (_ferret((31, 1), [1] * 32), "too few or too many"),
        (_ferret((32, 0), [1] * 32), "too few or too many"),
        (_ferret((2, 65_535), [1] * 32), "too few or too many"),
        (_ferret(GOOD, [1] * 31 + [math.nan]), "not finite"),
        (_ferret(GOOD, [-math.inf] + [1] * 31), "not finite"),
        (_ferret(GOOD, [3e38] + [1] * 31), "too large together"),
        (_ferret(GOOD, [1] * 20 + [-8e36] * 12), "too large together"),
        (_ferret(GOOD, [1] * 31)[:-4] + struct.pack("<II", 0x3F800000, 0x7FA00000), "not finite"),
    ],
)
def test_hostile_bodies(body: bytes, why: str) -> None:
    out = torch.full((SIZE,), 7.0)
    with pytest.raises(compressors.DecodeError, match=why):
        compressors.build("ferret:32").decode(body, out)
    assert torch.equal(out, torch.full((SIZE,), 7.0))


def test_the_largest_body_decodes_to_something_finite() -> None:
    out = torch.empty(SIZE)
    compressors.build("ferret:32").decode(_ferret(GOOD, [4e36] * 20 + [-7e36] * 12), out)
    assert bool(torch.isfinite(out).all())
    compressors.build("ferret:32").decode(_ferret((2, 2), [0.5, 0.25, 1, 1]), out)
    assert set(out[:300].tolist()) == {0.75, 0.25, -0.25, -0.75}
