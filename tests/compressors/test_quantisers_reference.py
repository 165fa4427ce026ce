"""Each quantiser against its own equation, worked out the slow way."""

import math
from collections.abc import Iterator

import pytest
import torch

import compressors
from compressors.quantizers.e3m0 import E3m0
from compressors.quantizers.int4 import Int4
from compressors.quantizers.nf4 import Nf4

SIZES = [1, 2, 63, 64, 65, 257, 321, 513, 1003]


def tailed(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, generator=generator) * torch.randn(size, generator=generator).exp()


def decoded(spelling: str, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    codec = compressors.build(spelling)
    out = torch.empty_like(x)
    codec.decode(codec.encode(x, seed), out)
    return out


def blocks(x: torch.Tensor, out: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(x), size):
        yield x[start : start + size], out[start : start + size]


def rounded_up(exact: torch.Tensor) -> torch.Tensor:
    """The least bfloat16 that is not below."""
    near = exact.bfloat16().float()
    return near if near >= exact else torch.nextafter(near.bfloat16(), torch.tensor(1e30).bfloat16()).float()


@pytest.mark.parametrize("cls", [E3m0, Int4, Nf4])
@pytest.mark.parametrize("size", SIZES)
def test_four_bits_are_the_nearest_level(cls: type[E3m0 | Int4 | Nf4], size: int) -> None:
    x, levels = tailed(size), torch.tensor(cls.levels)
    for row, out in blocks(x, decoded(cls.spelling, x), cls.block):
        candidates = levels * rounded_up(row.abs().max())
        nearest = (row[:, None] - candidates).abs().min(1).values
        torch.testing.assert_close((row - out).abs(), nearest, rtol=1e-5, atol=1e-6 * float(row.abs().max()))
        assert bool(torch.isin(out, candidates).all())


def test_levels_are_as_described() -> None:
    assert E3m0.levels == (*(-(2.0**-e) for e in range(7)), 0.0, *(2.0 ** (e - 6) for e in range(7)))
    assert [round(7 * level) for level in Int4.levels] == list(range(-7, 8))
    # The published table of NF4, to three digits, from the appendix of its paper.
    assert [round(level, 3) for level in Nf4.levels] == [
        *(-1.0, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0.0),
        *(0.080, 0.161, 0.246, 0.338, 0.441, 0.563, 0.723, 1.0),
    ]


@pytest.mark.parametrize("size", SIZES)
def test_e4m3_is_torchs_own(size: int) -> None:
    x = tailed(size)
    x[::7] *= 1e-4  # numbers that the format holds with fewer bits, or not at all
    for row, out in blocks(x, decoded("e4m3", x), 256):
        scale = rounded_up(row.abs().max())
        inverse = 1 / scale * 448
        wanted = (row * inverse).to(torch.float8_e4m3fn).float() / 448 * scale
        torch.testing.assert_close(out, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_fp16_is_half_precision_of_the_scaled_chunk(size: int) -> None:
    for factor in (1.0, 1e-30, 1e30):
        x = tailed(size) * factor
        scale = 2.0 ** (math.floor(math.log2(float(x.abs().max()))) - 14)
        wanted = (x.double() / scale).float().half().double() * scale
        assert torch.equal(decoded("fp16", x), wanted.float())


@pytest.mark.parametrize("size", SIZES)
def test_sign_is_the_sign_times_the_mean_magnitude(size: int) -> None:
    x = tailed(size)
    x[::5] = 0
    for row, out in blocks(x, decoded("sign", x), 256):
        mean = row.double().abs().mean().float()
        torch.testing.assert_close(out.abs(), mean.expand(len(row)), rtol=2**-7, atol=0)
        assert bool((out.abs() >= 0.999999 * mean).all())
        assert bool(((out < 0) == (row < 0)).all())


@pytest.mark.parametrize("size", SIZES)
def test_terngrad_keeps_magnitudes_in_proportion(size: int) -> None:
    x, kept = tailed(size), torch.zeros(size)
    for seed in range(300):
        drawn = decoded("terngrad", x, seed)
        kept += drawn != 0
        for row, out in blocks(x, drawn, 320):
            scale = rounded_up(row.abs().max())
            assert bool(((out == 0) | (out == scale * row.sign())).all())
    for row, count in blocks(x, kept, 320):
        probability = row.abs() / rounded_up(row.abs().max())
        spread = (probability * (1 - probability) / 300).sqrt()
        assert bool(((count / 300 - probability).abs() <= 5 * spread + 0.01).all())


@pytest.mark.parametrize("factor", [1.0, 1e-37, 1e35])
def test_natural_goes_to_a_neighbouring_power_of_two(factor: float) -> None:
    x = tailed(1003) * factor
    below = (x.view(torch.int32) & 0x7F800000).view(torch.float32)
    normal = x.abs() >= 2.0**-126
    up = torch.zeros(1003)
    for seed in range(200):
        out = decoded("natural", x, seed).abs()
        assert bool(((out == below) | (out == 2 * below))[normal].all())
        up += out > below
    probability = x.abs() / below - 1
    assert float((up / 200 - probability)[normal].abs().max()) < 5 * math.sqrt(0.25 / 200)


def test_natural_leaves_powers_of_two_alone() -> None:
    x = torch.tensor([1.0, -2.0, 0.5, -(2.0**-124), 0.0])
    assert torch.equal(decoded("natural", x), x)
    far = torch.tensor([2.0**126, 1.0, -4.0])
    assert torch.equal(decoded("natural", far), torch.tensor([2.0**126, 0.0, -4.0]))


@pytest.mark.parametrize("levels", [1, 2, 3, 7, 20, 127])
@pytest.mark.parametrize("size", SIZES)
def test_qsgd_goes_to_a_neighbouring_level(levels: int, size: int) -> None:
    x = tailed(size)
    for row, out in blocks(x, decoded(f"qsgd:{levels}", x, 4), 512):
        step = float(row.double().norm()) / levels
        level = out.double() / step
        torch.testing.assert_close(level, level.round(), rtol=1e-5, atol=1e-5)
        exact = row.double() / step
        assert bool(((level - exact).abs() < 1.0001).all())
        assert int(level.abs().max().round()) <= levels


def test_stochastic_int8_goes_to_a_neighbouring_level() -> None:
    x = tailed(1003)
    for row, out in blocks(x, decoded("int8:stochastic", x, 4), 256):
        scale = row.abs().max() / 127
        level = out / scale
        torch.testing.assert_close(level, level.round(), rtol=1e-5, atol=1e-5)
        assert bool(((level - row / scale).abs() < 1.0001).all())
        assert float(out.abs().max()) == pytest.approx(float(row.abs().max()))
