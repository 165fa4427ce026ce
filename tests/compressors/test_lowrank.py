"""PowerSGD as a codec: against its equations, the best approximation there is, and the bound it declares."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import compressors
from compressors.core.context import ChunkContext

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=60)
PIECES = ((0, 30, 40), (1200, 1, 100), (1300, 60, 25), (2800, 3, 3), (2809, 1, 7))
SIZE = 2816


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def matrix_place(rows: int, columns: int, common: int = 0) -> ChunkContext:
    return ChunkContext(common, own=0, pieces=((0, rows, columns),))


def decoded(rank: int, x: Tensor, place: ChunkContext) -> Tensor:
    codec = compressors.build(f"powersgd:{rank}").at(place)
    before = x.clone()
    body = codec.encode(x, seed=1)
    assert torch.equal(x, before)
    assert codec.encode(x, seed=2) == body
    assert len(body) <= codec.bytes_max(x.numel())
    out = torch.full_like(x, math.nan)
    codec.decode(memoryview(body), out)
    return out


def relative_error(x: Tensor, out: Tensor) -> float:
    return float((out.double() - x.double()).square().sum() / x.double().square().sum())


def best_error(matrix: Tensor, rank: int) -> float:
    squares = torch.linalg.svdvals(matrix.double()).square()
    return float(squares[rank:].sum() / squares.sum())


def decaying(rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix whose singular values halve, as those of updates nearly do."""
    rank = min(rows, columns)
    left = torch.linalg.qr(normal(rows * rank, seed).view(rows, rank))[0]
    right = torch.linalg.qr(normal(columns * rank, seed + 1).view(columns, rank))[0]
    return torch.mm(left * 0.5 ** torch.arange(rank), right.T)


@pytest.mark.parametrize(("rows", "columns"), [(30, 40), (40, 30), (8, 300), (300, 8), (32, 32)])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_matrix_of_that_rank_is_sent_as_it_is(rows: int, columns: int, rank: int) -> None:
    x = (normal(rows * rank, 1).view(rows, rank) @ normal(rank * columns, 2).view(rank, columns)).flatten()
    place = matrix_place(rows, columns, common=5)
    assert len(compressors.build(f"powersgd:{rank}").at(place).encode(x, 0)) == 4 * rank * (rows + columns)
    torch.testing.assert_close(decoded(rank, x, place), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(64, 48), (48, 64), (100, 300)])
@pytest.mark.parametrize("rank", [1, 3])
def test_two_iterations_come_near_the_best_there_is(rows: int, columns: int, rank: int) -> None:
    matrix = decaying(rows, columns)
    x, best = matrix.flatten(), best_error(matrix, rank)
    errors = [
        relative_error(x, decoded(rank, x, matrix_place(rows, columns, common))) for common in range(40)
    ]
    assert min(errors) >= best * (1 - 1e-4)
    assert sum(errors) / 40 < 1.5 * best


@pytest.mark.parametrize(("rows", "columns"), [(40, 30), (30, 40)])
def test_against_the_equations(rows: int, columns: int) -> None:
    """A projection of the matrix: the factor of the longer side is orthonormal, the other what the matrix is there."""
    rank, x = 2, normal(rows * columns)
    matrix = x.double().view(rows, columns).numpy()
    start = normal(30 * rank, seed=77).view(30, rank).double().numpy()
    tall = matrix if rows >= columns else matrix.T
    basis = np.linalg.qr(tall @ np.linalg.qr(tall.T @ np.linalg.qr(tall @ start)[0])[0])[0]
    wanted = basis @ basis.T @ tall
    out = decoded(rank, x, matrix_place(rows, columns, common=77)).view(rows, columns).numpy()
    np.testing.assert_allclose(out, wanted if rows >= columns else wanted.T, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(32, 32, 1), (32, 32, 4), (20, 100, 2), (100, 20, 2)])
def test_the_worst_matrix_keeps_what_is_declared(rows: int, columns: int, rank: int) -> None:
    """One whose singular values are equal: a projection to rank r keeps r of them, and none keeps more."""
    orthogonal = torch.linalg.qr(
        normal(max(rows, columns) * min(rows, columns)).view(-1, min(rows, columns))
    )[0]
    x = (orthogonal if rows >= columns else orthogonal.T).flatten().contiguous()
    found = relative_error(x, decoded(rank, x, matrix_place(rows, columns)))
    assert found == pytest.approx(1 - rank / min(rows, columns), abs=1e-5)
    delta = compressors.build(f"powersgd:{rank}").delta(rows * columns)
    assert found <= 1 - delta + 1e-6
    if rows == columns:
        assert found == pytest.approx(1 - delta, abs=1e-5)


@pytest.mark.parametrize("kind", ["normal", "lonely", "diagonal", "cross", "heavy"])
@pytest.mark.parametrize("rank", [1, 3])
def test_contraction_on_average_over_the_start(kind: str, rank: int) -> None:
    rows, columns = 40, 36
    matrix = normal(rows * columns, seed=rank).view(rows, columns)
    match kind:
        case "lonely":
            matrix *= torch.arange(rows * columns).view(rows, columns) == 77
        case "diagonal":
            matrix = torch.eye(rows, columns)
        case "cross":  # a strong direction that no other meets
            matrix = 0.01 * torch.eye(rows, columns)
            matrix[3, 5] = 1.0
        case "heavy":
            matrix = matrix.sign() * torch.exp(3 * matrix)
        case _:
            pass
    x = matrix.flatten()
    errors = [
        relative_error(x, decoded(rank, x, matrix_place(rows, columns, common))) for common in range(100)
    ]
    delta = compressors.build(f"powersgd:{rank}").delta(x.numel())
    assert sum(errors) / 100 <= 1 - delta + 1e-6
    assert max(errors) <= 1 + 1e-6  # a projection, whatever the start


@pytest.mark.parametrize(("rows", "columns"), [(7, 60), (60, 7), (20, 20)])
def test_a_common_factor_keeps_what_is_declared_on_average_over_the_start(rows: int, columns: int) -> None:
    """Of the worst matrix for it, whose rows are one and the same."""
    x = normal(columns).repeat(rows)
    codec, out, kept = compressors.build("powersgd:2:common"), torch.empty(x.numel()), 0.0
    for common in range(400):
        bound = codec.at(matrix_place(rows, columns, common))
        bound.decode(bound.encode(x, 0), out)
        kept += 1 - relative_error(x, out)
    assert kept / 400 == pytest.approx(2 / columns, rel=0.2)
    assert kept / 400 >= codec.delta(rows * columns)


@PROPERTY
@given(
    shapes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6),
    rank=st.integers(1, 8),
    seed=st.integers(0, 99),
    magnitude=st.sampled_from([0.0, 1e-36, 1e-30, 1.0, 1e30, 1e36]),
)
def test_any_pieces(shapes: list[tuple[int, int]], rank: int, seed: int, magnitude: float) -> None:
    pieces: list[tuple[int, int, int]] = []
    at = 0
    for rows, columns in shapes:
        pieces.append((at, rows, columns))
        at += rows * columns
    x = magnitude * normal(at, seed)
    out = decoded(rank, x, ChunkContext(common=seed, own=0, pieces=tuple(pieces)))
    assert bool(torch.isfinite(out).all())
    for start, rows, columns in pieces:
        part, whole = slice(start, start + rows * columns), x[start : start + rows * columns].double()
        if 2 * rank * (rows + columns) > rows * columns:
            assert torch.equal(out[part], x[part])
        error = float((out[part].double() - whole).square().sum())
        assert error <= float(whole.square().sum()) * (1 + 1e-5)


def test_pieces_do_not_mix() -> None:
    x = normal(SIZE)
    out = decoded(2, x, ChunkContext(0, 0, PIECES))
    for start, rows, columns in PIECES:
        if min(rows, columns) < 8:
            assert torch.equal(out[start : start + rows * columns], x[start : start + rows * columns])
        else:
            assert torch.linalg.matrix_rank(out[start : start + rows * columns].view(rows, columns)) == 2
    whole = compressors.build("powersgd:2").at(ChunkContext(0, 0, PIECES)).encode(x, 0)
    assert len(whole) == 4 * (2 * 70 + 100 + 2 * 85 + 9 + 7)


def test_without_a_place_the_chunk_is_one_row() -> None:
    x = normal(1000)
    codec = compressors.build("powersgd:1")
    assert codec.encode(x, 0) == x.numpy().tobytes()


def test_a_place_of_another_size_is_a_mistake() -> None:
    codec = compressors.build("powersgd:1").at(ChunkContext(0, 0, PIECES))
    with pytest.raises(ValueError, match="has 5 coordinates, and its place is for 2816"):
        codec.encode(torch.zeros(5), 0)
    with pytest.raises(ValueError, match="its place is for 2816"):
        codec.decode(b"", torch.zeros(5))


def test_the_start_is_common_to_all_senders_of_a_round() -> None:
    x, codec = normal(SIZE), compressors.build("powersgd:2")
    body = codec.at(ChunkContext(9, 1, PIECES)).encode(x, 0)
    assert codec.at(ChunkContext(9, 2, PIECES)).encode(x, 0) == body
    assert codec.at(ChunkContext(8, 1, PIECES)).encode(x, 0) != body
    assert codec.at(ChunkContext(2**64 + 9, 1, PIECES)).encode(x, 0) == body


def test_flags_constants_and_spellings() -> None:
    codec = compressors.build("powersgd:04")
    assert codec.spelling == "powersgd:4"
    assert not codec.linear
    common = compressors.build("powersgd:04:common")
    assert common.spelling == "powersgd:4:common"
    assert common.linear
    for wrong in ("powersgd:4:", "powersgd:4:shared", "powersgd:4:common:common"):
        with pytest.raises(compressors.CodecError, match="powersgd:4:common"):
            compressors.build(wrong)
    assert (codec.unbiased, codec.contractive, codec.linear) == (False, True, False)
    assert codec.delta(1 << 18) == 4 / 512
    assert codec.delta(16 * 16 - 1) == codec.delta(0) == 1.0  # no matrix so small is factored
    assert codec.delta(16 * 16) == 4 / 16
    with pytest.raises(compressors.CodecError, match="not unbiased"):
        codec.omega(5)
    for wrong in ("powersgd", "powersgd:", "powersgd:-4", "powersgd:many"):
        with pytest.raises(compressors.CodecError, match="such as powersgd:4"):
            compressors.build(wrong)
    for wrong in ("powersgd:0", "powersgd:129", "powersgd:" + "9" * 5000):
        with pytest.raises(compressors.CodecError, match="from 1 to 128"):
            compressors.build(wrong)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1250, 1400, SIZE - 1])
def test_what_is_not_finite_does_not_decode(bad: float, at: int) -> None:
    codec, x, out = (
        compressors.build("powersgd:2").at(ChunkContext(0, 0, PIECES)),
        normal(SIZE),
        torch.full((SIZE,), 7.0),
    )
    x[at] = bad
    body = codec.encode(x, 0)
    with pytest.raises(compressors.DecodeError, match="not finite"):
        codec.decode(body, out)
    assert torch.equal(out, torch.full((SIZE,), 7.0))


@pytest.mark.parametrize("scalars", [0x7FC00000, 0x7FA00000, 0x7F800000, 0xFF800000])
@pytest.mark.parametrize("at", [0, 100, 200, 300, 400, 425])
def test_scalars_that_are_none_are_refused(scalars: int, at: int) -> None:
    codec, out = compressors.build("powersgd:2").at(ChunkContext(0, 0, PIECES)), torch.full((SIZE,), 7.0)
    body = bytearray(codec.encode(normal(SIZE), 0))
    struct.pack_into("<I", body, 4 * at, scalars)
    with pytest.raises(compressors.DecodeError, match="not finite"):
        codec.decode(bytes(body), out)
    assert torch.equal(out, torch.full((SIZE,), 7.0))


def test_factors_that_are_too_large_together_are_refused() -> None:
    codec, out = compressors.build("powersgd:1").at(matrix_place(10, 10)), torch.full((100,), 7.0)
    for left, right in ((1e20, 1e20), (3e38, 1e-30), (1e-30, -3e38), (-1e19, 1e19)):
        with pytest.raises(compressors.DecodeError, match="too large together"):
            codec.decode(struct.pack("<20f", *[left] * 10, *[right] * 10), out)
        assert torch.equal(out, torch.full((100,), 7.0))
    codec.decode(struct.pack("<20f", *[-8e18] * 10, *[8e18] * 10), out)
    assert out.tolist() == pytest.approx([-6.4e37] * 100)


def test_any_other_length_is_refused_and_flipped_bits_never_crash() -> None:
    codec, x = compressors.build("powersgd:2").at(ChunkContext(0, 0, PIECES)), normal(SIZE)
    body, out = codec.encode(x, 0), torch.empty(SIZE)
    for other in (b"", body[:-1], body[:-4], body[4:], body + b"\0", body + body):
        with pytest.raises(compressors.DecodeError, match="bytes where"):
            codec.decode(other, out)
    random, refused = np.random.default_rng(5), 0
    for _ in range(400):
        flipped = bytearray(body)
        for at in random.integers(0, 8 * len(body), random.integers(1, 9)):
            flipped[at // 8] ^= 1 << int(at) % 8
        try:
            codec.decode(bytes(flipped), out)
        except compressors.DecodeError:
            refused += 1
        else:
            assert bool(torch.isfinite(out).all())
    assert 0 < refused < 400
