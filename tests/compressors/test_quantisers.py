"""Quantisers: what they lose is within what they declare, on average and at worst."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compressors

NEAREST = ["fp16", "int8", "e4m3", "int4", "e3m0", "nf4", "sign"]
STOCHASTIC = ["int8:stochastic", "qsgd:1", "qsgd:7", "qsgd:127", "terngrad", "natural"]
SPELLINGS = NEAREST + STOCHASTIC
BITS = {  # a coordinate of a whole chunk
    "fp16": 16 + 2**-14,
    "int8": 8.125,
    "int8:stochastic": 8.125,
    "e4m3": 8.0625,
    "int4": 4.25,
    "nf4": 4.25,
    "e3m0": 4.0625,
    "sign": 1.0625,
    "terngrad": 1.65,
    "natural": 8 + 2**-15,
    "qsgd:1": 2.0625,
    "qsgd:7": 4.0625,
    "qsgd:127": 8.0625,
}
PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=60)
EDGES = [1, 2, 3, 63, 64, 65, 255, 256, 257, 319, 320, 321, 511, 512, 513, 4095]
SIZES = st.one_of(st.integers(1, 1100), st.sampled_from(EDGES))


def normal(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def lognormal_tailed(size: int, seed: int = 0) -> torch.Tensor:
    return normal(size, seed) * torch.exp(normal(size, seed + 1))


@st.composite
def chunks(draw: st.DrawFn) -> torch.Tensor:
    """Chunks whose values are zero or normal float32 numbers, at most 2^120 and blocks not too small for int8."""
    size = draw(SIZES)
    x = normal(size, draw(st.integers(0, 2**31)))
    match draw(st.sampled_from(["normal", "heavy", "lonely", "constant", "zero", "small", "large", "steps"])):
        case "heavy":
            x = x.sign() * torch.exp(3 * x)
        case "lonely":
            x *= torch.arange(size) % 300 == 7
        case "constant":
            x = torch.full((size,), -0.75)
        case "zero":
            x.zero_()
        case "small":
            x = torch.where(x.abs() < 0.01, 0.0, x) * 1e-34
        case "large":
            x *= 1e34
        case "steps":  # midpoints between levels are where rounding loses most
            x = (x * 8).round() / 16
        case _:
            pass
    return x


def round_trip(spelling: str, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    codec = compressors.build(spelling)
    before = x.clone()
    body = codec.encode(x, seed)
    assert torch.equal(x, before)
    assert isinstance(body, bytes)
    assert len(body) <= codec.bytes_max(x.numel())
    assert codec.encode(x, seed) == body
    out = torch.full_like(x, math.nan)
    codec.decode(memoryview(body), out)
    assert bool(torch.isfinite(out).all())
    return out


def squared_error(x: torch.Tensor, out: torch.Tensor) -> float:
    return float((x.double() - out.double()).square().sum())


@pytest.mark.parametrize("spelling", NEAREST)
@PROPERTY
@given(x=chunks())
def test_every_chunk_loses_less_than_declared(spelling: str, x: torch.Tensor) -> None:
    allowed = 1 - compressors.build(spelling).delta(x.numel())
    assert squared_error(x, round_trip(spelling, x)) <= allowed * squared_error(x, x * 0) * (1 + 1e-6)


@pytest.mark.parametrize("spelling", STOCHASTIC)
@PROPERTY
@given(x=chunks())
def test_stochastic_codecs_take_every_chunk(spelling: str, x: torch.Tensor) -> None:
    out = round_trip(spelling, x, seed=3)
    assert bool((out * x.sign() >= 0).all())  # no value changes its sign
    assert bool((out[x == 0] == 0).all())
    # At most one step away, and the step at most the block's norm or twice the value.
    assert float((out.double() - x).abs().max()) <= 1.01 * float(x.double().norm())


@pytest.mark.parametrize("spelling", STOCHASTIC)
@pytest.mark.parametrize("size", [1500, 4096])
def test_stochastic_codecs_are_unbiased(spelling: str, size: int) -> None:
    """The mean of T draws errs by sqrt(omega / T), relative; a bias would stay."""
    codec = compressors.build(spelling)
    x, draws = normal(size, seed=size), 400
    mean, variance, out = torch.zeros(size).double(), 0.0, torch.empty(size)
    for seed in range(draws):
        codec.decode(codec.encode(x, seed), out)
        mean += out.double() / draws
        variance += squared_error(x, out) / draws
    length = squared_error(x, x * 0)
    assert variance <= codec.omega(size) * length
    assert squared_error(x, mean) <= 1.3**2 * codec.omega(size) / draws * length
    assert squared_error(x, mean) <= 1.2**2 * variance / draws  # and by no more than chance makes it


@pytest.mark.parametrize("spelling", STOCHASTIC)
def test_the_worst_case_for_the_variance_stays_below_omega(spelling: str) -> None:
    """One coordinate large, the others 1 / sqrt(n) of it, is the worst there is for scales and norms."""
    codec = compressors.build(spelling)
    for size in (1, 8, 256, 320, 512):
        x = torch.full((size,), 1 / math.sqrt(size))
        x[0] = 1.0
        out, variance = torch.empty(size), 0.0
        for seed in range(200):
            codec.decode(codec.encode(x, seed), out)
            variance += squared_error(x, out) / 200
        assert variance <= codec.omega(size) * squared_error(x, x * 0) * 1.1 + 1e-12


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_flags_agree_with_constants(spelling: str) -> None:
    codec = compressors.build(spelling)
    assert codec.unbiased == (spelling in STOCHASTIC)
    assert not codec.linear
    assert compressors.build(codec.spelling).spelling == spelling
    for size in (0, 1, 63, 64, 255, 256, 257, 1 << 18):
        if codec.contractive:
            assert 0 < codec.delta(size) <= 1
        if codec.unbiased:
            assert 0 <= codec.omega(size) < math.inf
    if not codec.contractive:
        with pytest.raises(compressors.CodecError, match="not contractive"):
            codec.delta(5)
    if not codec.unbiased:
        with pytest.raises(compressors.CodecError, match="not unbiased"):
            codec.omega(5)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_chunks_bits(spelling: str) -> None:
    size = 1 << 18
    codec = compressors.build(spelling)
    body = codec.encode(lognormal_tailed(size), 0)
    assert len(body) == codec.bytes_max(size)
    assert 8 * len(body) / size == pytest.approx(BITS[spelling], abs=0.001)


@pytest.mark.parametrize(
    ("spelling", "most"),
    [("e4m3", 0.026), ("nf4", 0.135), ("int4", 0.19), ("e3m0", 0.2), ("int8", 0.021), ("fp16", 0.0004)],
)
def test_relative_errors_on_lognormal_tails(spelling: str, most: float) -> None:
    x = lognormal_tailed(1 << 18)
    error = math.sqrt(squared_error(x, round_trip(spelling, x)) / squared_error(x, x * 0))
    assert 0.5 * most < error < most


@pytest.mark.parametrize("spelling", STOCHASTIC)
def test_seeds_matter_and_are_all_that_matters(spelling: str) -> None:
    codec, x = compressors.build(spelling), normal(3000)
    torch.manual_seed(1)
    first = codec.encode(x, 2**62)
    torch.manual_seed(2)
    assert codec.encode(x, 2**62) == first
    assert codec.encode(x, 2**62 + 1) != first


@pytest.mark.parametrize("spelling", NEAREST)
def test_rounding_to_nearest_takes_no_seed(spelling: str) -> None:
    codec, x = compressors.build(spelling), normal(3000)
    assert codec.encode(x, 0) == codec.encode(x, 1)


@pytest.mark.parametrize("spelling", ["int8", "e4m3", "int4", "e3m0", "nf4", "sign"])
@pytest.mark.parametrize("size", [1, 7, 300, 1000])
def test_blocks_do_not_mix(spelling: str, size: int) -> None:
    """A chunk's whole blocks and its tail decode as they would alone."""
    whole = 2560  # a multiple of every block
    x = lognormal_tailed(whole + size)
    out = round_trip(spelling, x)
    assert torch.equal(out[whole:], round_trip(spelling, x[whole:].contiguous()))
    assert torch.equal(out[:whole], round_trip(spelling, x[:whole].contiguous()))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 100, 699])
def test_what_is_not_finite_does_not_decode(spelling: str, bad: float, at: int) -> None:
    codec, x = compressors.build(spelling), normal(700)
    x[at] = bad
    x[(at + 5) % 700] = 1e30
    out = torch.full((700,), 7.0)
    body = codec.encode(x, 0)
    assert len(body) <= codec.bytes_max(700)
    with pytest.raises(compressors.DecodeError):
        codec.decode(body, out)
    assert torch.equal(out, torch.full((700,), 7.0))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("magnitude", [1e-45, 1.2e-38, 1e-20, 1e20, 1.7e38, 3.4e38])
def test_ends_of_the_range(spelling: str, magnitude: float) -> None:
    """Whatever float32 holds makes a body that decodes to something finite, or does not decode."""
    codec = compressors.build(spelling)
    x = magnitude * torch.tensor([1.0, -0.5, 0.25, 0.0, -1.0])
    out = torch.empty(5)
    try:
        codec.decode(codec.encode(x, 1), out)
    except compressors.DecodeError:
        assert magnitude > 1e38
        return
    assert bool(torch.isfinite(out).all())
    assert float((out.double() - x).abs().max()) <= 2.3 * magnitude


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_empty_chunk_has_a_body_too(spelling: str) -> None:
    codec = compressors.build(spelling)
    body = codec.encode(torch.empty(0), 0)
    assert len(body) <= codec.bytes_max(0)
    codec.decode(body, torch.empty(0))


@pytest.mark.parametrize("wrong", [torch.zeros(4).double(), torch.zeros(2, 2), torch.zeros(8)[::2]])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_only_flat_float32_is_a_chunk(spelling: str, wrong: torch.Tensor) -> None:
    codec = compressors.build(spelling)
    with pytest.raises(ValueError, match="a chunk is flat"):
        codec.encode(wrong, 0)
    with pytest.raises(ValueError, match="a chunk is flat"):
        codec.decode(b"", wrong)


@pytest.mark.parametrize(
    ("spelling", "why"),
    [
        ("qsgd", "needs its number of levels"),
        ("qsgd:", "needs its number of levels"),
        ("qsgd:many", "not 'many'"),
        ("qsgd:-1", "not '-1'"),
        ("qsgd:0", "from 1 to 127 levels, not 0"),
        ("qsgd:128", "from 1 to 127 levels, not 128"),
        ("qsgd:" + "9" * 5000, "from 1 to 127 levels"),
        ("int8:random", "no argument but stochastic, not 'random'"),
        ("int8:", "no argument but stochastic, not ''"),
        ("nf4:16", "nf4 takes no argument"),
        ("sign:", "sign takes no argument"),
    ],
)
def test_wrong_spellings_say_what_is_wrong(spelling: str, why: str) -> None:
    with pytest.raises(compressors.CodecError, match=why):
        compressors.build(spelling)
