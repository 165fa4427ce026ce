"""One byte a direction: the grid, least squares against numpy's, sums that come back byte by byte, hostile bodies."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

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
from compressors.sketches.one_byte import GRID, OneByte, to_bytes

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=60)
WORST = math.exp(1 / 16) - 1
LEGAL = [code for code in range(256) if code != 0x80]


def at(count: int, own: int = 5) -> OneByte:
    codec = compressors.build(f"one-byte:{count}").at(ChunkContext(common=1, own=own))
    assert isinstance(codec, OneByte)
    return codec


def directions(own: int, count: int, size: int) -> NDArray[np.float64]:
    """[count, size] of +-1 as the docstrings say they are drawn, by numpy's own Philox."""
    found = np.empty((count, size))
    for s in range(count):
        key, counter = np.array([own, 0], dtype=np.uint64), np.array([0, s // 8, 0, 0], dtype=np.uint64)
        words = Philox(key=key, counter=counter).random_raw(-(-size // 8))
        found[s] = np.where(words.view(np.uint8)[:size] >> s % 8 & 1, 1, -1)
    return found


def gradients(count: int, seed: int = 0, scale: float = 1e-3) -> NDArray[np.uint8]:
    """[count] bytes as training has them: of normal numbers."""
    return to_bytes(np.random.default_rng(seed).standard_normal(count) * scale)


def decoded(codec: OneByte, body: bytes, size: int) -> Tensor:
    out = torch.full((size,), math.nan)
    codec.decode(memoryview(body), out)
    return out


def test_the_grid_is_a_step_of_an_eighth_of_a_nat() -> None:
    positive = GRID[1:128].astype(np.float64)
    assert positive[0] == pytest.approx(math.exp(1 / 8 - 18), rel=1e-6)
    assert positive[-1] == pytest.approx(math.exp(127 / 8 - 18), rel=1e-6)
    np.testing.assert_allclose(np.diff(np.log(positive)), 1 / 8, atol=1e-6)
    assert np.array_equal(GRID[129:], -GRID[1:128])
    assert GRID[0] == 0
    assert math.isnan(GRID[0x80])
    assert to_bytes(GRID.astype(np.float64)).tolist() == list(range(256))


def test_rounding_errs_as_a_step_of_an_eighth_does() -> None:
    random = np.random.default_rng(0)
    x = np.exp(random.uniform(math.log(GRID[1]), math.log(GRID[127]), 100_000)) * random.choice(
        [-1, 1], 100_000
    )
    ratio = GRID[to_bytes(x)] / x
    assert float(np.abs(ratio - 1).max()) <= WORST * 1.0001
    assert float(np.abs(ratio - 1).mean()) == pytest.approx(0.031, abs=0.0005)
    distances = np.abs(np.log(np.abs(x[:500, None]) / GRID[None, 1:128]))
    assert np.array_equal(to_bytes(np.abs(x[:500])), 1 + distances.argmin(axis=1))


def test_what_lies_beyond_the_grid() -> None:
    least = math.exp(-18 + 1 / 16)
    x = np.array([0.0, -0.0, 1e-300, -1e-9, least * 0.999, least * 1.001, 0.2, -1e300, -3.0])
    assert to_bytes(x).tolist() == [0, 0, 0, 0, 0, 1, 127, 255, 255]
    assert to_bytes(np.array([math.nan, math.inf, -math.inf])).tolist() == [0x80] * 3


@pytest.mark.parametrize(("count", "size"), [(1, 1), (7, 100), (8, 64), (16, 999), (30, 65), (256, 300)])
def test_a_body_is_the_sum_of_its_directions(count: int, size: int) -> None:
    codes = np.random.default_rng(count).choice(LEGAL, count).astype(np.uint8)
    own = 2**63 + 11
    wanted = GRID[codes].astype(np.float64) @ directions(own, count, size)
    out = decoded(at(count, own), codes.tobytes(), size)
    np.testing.assert_allclose(out.numpy(), wanted, atol=1e-6 * np.abs(GRID[codes]).sum())


def test_the_signs_are_given_eight_directions_at_a_time() -> None:
    codec, wanted = at(12, own=9), directions(9, 12, 77)
    for s in range(12):
        assert np.array_equal(codec.signs(s // 8, 77).numpy() >> s % 8 & 1, wanted[s] > 0)


@pytest.mark.parametrize(("count", "size"), [(1, 5), (7, 100), (16, 999), (16, 4096), (100, 300)])
def test_any_chunk_is_projected_by_least_squares(count: int, size: int) -> None:
    x = 0.01 * torch.randn(size, generator=torch.Generator().manual_seed(count))
    wanted = np.linalg.lstsq(directions(5, count, size).T, x.double().numpy(), rcond=None)[0]
    assert at(count).encode(x, seed=0) == to_bytes(wanted).tobytes()


@pytest.mark.parametrize(
    ("count", "size"), [(1, 4810), (8, 4810), (256, 4810), (1, 1 << 18), (16, 1 << 18), (30, 1 << 18)]
)
def test_a_sum_of_directions_comes_back_byte_by_byte(count: int, size: int) -> None:
    """Also when float32 weights have taken it up, and the update is what they changed by."""
    codec, body = at(count), gradients(count).tobytes()
    x = decoded(codec, body, size)
    assert codec.encode(x, seed=0) == body
    weights = 0.3 * torch.randn(size, generator=torch.Generator().manual_seed(1))
    assert codec.encode((weights + x) - weights, seed=0) == body


@PROPERTY
@given(
    count=st.integers(1, 32),
    size=st.integers(128, 3000),
    own=st.integers(0, 2**64),
    levels=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_sums_whose_coefficients_differ_a_thousandfold_come_back(
    count: int, size: int, own: int, levels: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    codes = (
        random.integers(67 - levels // 2, 128 - levels // 2, count) * (random.random(count) < 0.9)
    ).astype(np.uint8)
    codes[codes > 0] |= random.choice(np.array([0, 0x80], dtype=np.uint8), int((codes > 0).sum()))
    codec = at(count, own)
    x = decoded(codec, codes.tobytes(), size)
    before = x.clone()
    assert codec.encode(x, seed=0) == codes.tobytes()
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [1, 2, 9, 15])
def test_a_chunk_of_fewer_coordinates_than_directions_is_carried_whole(size: int) -> None:
    """There are many sums for it, and the shortest is sent: what is lost is the rounding."""
    errors: list[float] = []
    for own in range(40):
        x = 0.01 * torch.randn(size, generator=torch.Generator().manual_seed(own))
        codec = at(64, own)
        body = codec.encode(x, seed=0)
        assert len(body) == 64
        errors.append(float((decoded(codec, body, size) - x).norm() / x.norm()))
    assert max(errors) < 0.1
    assert sum(errors) / 40 < 0.05


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_the_bytes_come_back_where_the_directions_are_independent(count: int) -> None:
    """And elsewhere another sum of about the same."""
    returned, changed = 0, 0
    for own in range(20):
        codec, body = at(count, own), gradients(count, own).tobytes()
        for size in (*range(1, 2 * count + 2), count + 64):
            x = decoded(codec, body, size)
            again = codec.encode(x, seed=0)
            drawn = directions(own, count, size)
            if np.linalg.cond(drawn @ drawn.T) < 1e6:
                assert again == body
                returned += 1
            else:
                assert size < count + 64
                changed += again != body
                assert float((decoded(codec, again, size) - x).norm()) <= 0.2 * float(x.norm()) + 1e-9
    assert returned > 20
    assert changed > 20 or count == 1


@pytest.mark.parametrize(("count", "size"), [(4, 64), (16, 256), (30, 1000)])
def test_of_any_other_chunk_the_share_of_the_directions_is_kept(count: int, size: int) -> None:
    """E|x - C(x)|^2 = (1 - P / size) |x|^2, and what rounding adds to it."""
    x = 0.01 * torch.randn(size, generator=torch.Generator().manual_seed(3))
    lost = 0.0
    for own in range(300):
        codec = at(count, own)
        lost += float((x - decoded(codec, codec.encode(x, seed=0), size)).square().sum()) / 300
    assert lost / float(x.square().sum()) == pytest.approx(1 - count / size, abs=0.25 * count / size)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_beyond_the_grid_it_is_no_contraction_and_says_so(scale: float) -> None:
    codec, x = at(16), scale * torch.ones(8)
    out = decoded(codec, codec.encode(x, seed=0), 8)
    assert float((x - out).double().norm() / x.double().norm()) > 0.999999
    assert (codec.unbiased, codec.contractive, codec.linear) == (False, False, False)
    with pytest.raises(compressors.CodecError, match="not contractive"):
        codec.delta(8)
    with pytest.raises(compressors.CodecError, match="not unbiased"):
        codec.omega(8)
    refusal = compressors.build_feedback("ef14").refuse(codec, 8)
    assert refusal == "ef14 needs a contractive codec, and one-byte:16 is not one"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", [1, 3000])
def test_what_is_not_finite_is_never_dropped(bad: float, count: int) -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    x[5 : 5 + count] = bad
    x[6] = -bad if count > 1 else x[6]
    body = at(16).encode(x, seed=0)
    with pytest.raises(compressors.DecodeError, match="not finite"):
        at(16).decode(body, torch.empty(5000))
    x = torch.full((5000,), 3e38)
    assert bool(torch.isfinite(decoded(at(16), at(16).encode(x, seed=0), 5000)).all())


def test_an_empty_chunk_has_an_empty_body() -> None:
    assert at(16).encode(torch.empty(0), seed=0) == b""
    assert at(16).bytes_max(0) == 0
    at(16).decode(b"", torch.empty(0))
    with pytest.raises(compressors.DecodeError):
        at(16).decode(b"\0", torch.empty(0))


@pytest.mark.parametrize("length", [0, 1, 15, 17, 1000])
def test_any_other_length_is_refused(length: int) -> None:
    out = torch.full((300,), 7.0)
    with pytest.raises(compressors.DecodeError, match="where 16 are due"):
        at(16).decode(bytes(length), out)
    assert torch.equal(out, torch.full((300,), 7.0))


@PROPERTY
@given(body=st.binary(min_size=16, max_size=16))
def test_any_bytes_mean_something_small_or_are_refused(body: bytes) -> None:
    out = torch.full((300,), 7.0)
    if 0x80 in body:
        with pytest.raises(compressors.DecodeError, match="not finite"):
            at(16).decode(body, out)
        assert torch.equal(out, torch.full((300,), 7.0))
    else:
        at(16).decode(body, out)
        assert float(out.abs().max()) <= 16 * 0.1195


def test_directions_belong_to_a_sender() -> None:
    body = gradients(16).tobytes()
    ours = decoded(at(16, own=1), body, 1000)
    assert not torch.equal(decoded(at(16, own=2), body, 1000), ours)
    codec = compressors.build("one-byte:16")
    other = codec.at(ChunkContext(common=99, own=1, pieces=((0, 10, 100),)))
    out = torch.empty(1000)
    other.decode(body, out)
    assert torch.equal(out, ours)
    assert codec.encode(ours, 0) != body
    assert other.encode(ours, 0) == body


def test_replicas_that_sort_what_comes_are_equal() -> None:
    """Bodies come in any order; each replica replays them by sender, and all sums have one order."""
    codec, size, random = compressors.build("one-byte:16"), 4810, np.random.default_rng(0)
    replicas = [torch.linspace(-1, 1, size) for _ in range(3)]
    for number in range(20):
        messages = [(peer, gradients(16, seed=100 * number + peer).tobytes()) for peer in range(8)]
        for weights in replicas:
            random.shuffle(messages)
            out = torch.empty(size)
            for peer, body in sorted(messages):
                codec.at(ChunkContext(common=number, own=1000 * number + peer)).decode(body, out)
                weights.add_(out, alpha=1 / 8)
    assert torch.equal(replicas[0], replicas[1])
    assert torch.equal(replicas[0], replicas[2])
    assert not torch.equal(replicas[0], torch.linspace(-1, 1, size))


def test_it_may_be_shared_by_threads() -> None:
    codecs = [at(16, own) for own in range(8)]
    bodies = [gradients(16, seed).tobytes() for seed in range(8)]

    def round_trips(number: int) -> bool:
        return all(
            codecs[number].encode(decoded(codecs[number], bodies[number], 50_000 + number), 0)
            == bodies[number]
            for _ in range(10)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(round_trips, range(8)))


@pytest.mark.parametrize("wrong", [torch.zeros(4).double(), torch.zeros(2, 2), torch.zeros(8)[::2]])
def test_only_flat_float32_is_a_chunk(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="a chunk is flat"):
        at(4).encode(wrong, 0)
    with pytest.raises(ValueError, match="a chunk is flat"):
        at(4).decode(bytes(4), wrong)


def test_spellings() -> None:
    assert compressors.build("one-byte:016").spelling == "one-byte:16"
    for wrong in ("one-byte", "one-byte:", "one-byte:-4", "one-byte:4.0", "one-byte:all"):
        with pytest.raises(compressors.CodecError, match="such as one-byte:16"):
            compressors.build(wrong)
    for wrong in ("one-byte:0", "one-byte:257", "one-byte:" + "9" * 5000):
        with pytest.raises(compressors.CodecError, match="from 1 to 256"):
            compressors.build(wrong)
