"""What every codec promises: round trip within its constant, its largest size, inputs untouched."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compressors

SPELLINGS = [
    "identity",
    "bf16",
    "int8",
    "topk:0.001",
    "topk:0.01",
    "topk:0.3",
    "topk:1.0",
    "powersgd:2",
    "powersgd:2:common",
]
EVERY = [*SPELLINGS, "ferret:512"]  # which is no contraction
PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=40)

SIZES = st.one_of(st.integers(1, 600), st.sampled_from([4095, 65_535, 65_536, 65_537, 1 << 18]))


@st.composite
def chunks(draw: st.DrawFn) -> torch.Tensor:
    """Chunks of many sizes and shapes of distribution, values normal float32 numbers or zero."""
    size = draw(SIZES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(size, generator=generator)
    kind = draw(
        st.sampled_from(["normal", "heavy", "sparse", "constant", "periodic", "zero", "small", "large"])
    )
    match kind:
        case "heavy":
            x = x.sign() * torch.exp(3 * x)
        case "sparse":
            x *= torch.rand(size, generator=generator) < 0.003
        case "constant":
            x = torch.full((size,), 0.75)
        case "periodic":
            x *= (torch.arange(size) % 64 == 7).float()
        case "zero":
            x.zero_()
        case "small":
            x *= 1e-30
        case "large":
            x *= 1e30
        case _:
            pass
    return x


@pytest.mark.parametrize("spelling", SPELLINGS)
@PROPERTY
@given(x=chunks())
def test_contraction_and_size(spelling: str, x: torch.Tensor) -> None:
    codec = compressors.build(spelling)
    before = x.clone()
    body = codec.encode(x, seed=1)
    assert torch.equal(x, before)
    assert isinstance(body, bytes)
    assert len(body) <= codec.bytes_max(x.numel())
    out = torch.full_like(x, math.nan)
    codec.decode(memoryview(body), out)
    wide, error = x.double(), x.double() - out.double()
    assert float(error @ error) <= (1 - codec.delta(x.numel())) * float(wide @ wide) * (1 + 1e-6)
    assert codec.encode(x, seed=1) == body


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_declared_constants_are_of_use(spelling: str) -> None:
    codec = compressors.build(spelling)
    assert codec.contractive
    for size in (1, 255, 256, 257, 1 << 18):
        assert 0 < codec.delta(size) <= 1
    assert compressors.build(codec.spelling).spelling == codec.spelling


@pytest.mark.parametrize("spelling", ["int8", "bf16", "topk:0.3"])
def test_deterministic_lossy_codecs_are_declared_biased(spelling: str) -> None:
    """Averaged over seeds the error of these stays: none may claim to be unbiased."""
    codec = compressors.build(spelling)
    x = torch.randn(512, generator=torch.Generator().manual_seed(0))
    mean, out = torch.zeros(512), torch.empty(512)
    for seed in range(50):
        codec.decode(codec.encode(x, seed), out)
        mean += out / 50
    assert not codec.unbiased
    assert float((mean - x).norm()) > 1e-4


def test_identity_is_the_tensors_own_bytes() -> None:
    codec = compressors.build("identity")
    x = torch.tensor([1.0, -0.0, math.inf, math.nan])
    body = codec.encode(x, 0)
    assert body == x.numpy().tobytes()
    out = torch.empty(4)
    codec.decode(body, out)
    assert out.numpy().tobytes() == body
    assert codec.unbiased
    assert codec.linear


def test_bf16_rounds_as_torch_does() -> None:
    x = torch.cat([torch.randn(1000), torch.tensor([math.inf, -math.inf, math.nan, 3.4e38, 1e-40, -0.0])])
    out = torch.empty_like(x)
    codec = compressors.build("bf16")
    codec.decode(codec.encode(x, 0), out)
    assert torch.equal(out.nan_to_num(nan=5.0), x.bfloat16().float().nan_to_num(nan=5.0))
    assert len(codec.encode(x, 0)) == 2 * x.numel()


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_int8_against_its_equation(size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(size))
    out = torch.empty(size)
    codec = compressors.build("int8")
    body = codec.encode(x, 0)
    codec.decode(body, out)
    for start in range(0, size, 256):
        block = x[start : start + 256]
        scale = block.abs().max() / 127
        torch.testing.assert_close(out[start : start + 256], (block / scale).round() * scale)
    assert len(body) == size + 4 * math.ceil(size / 256)


def test_int8_blocks_too_small_for_a_scale_become_zero() -> None:
    x = torch.cat([torch.full((256,), 1e-38), torch.ones(256)])
    out = torch.empty(512)
    codec = compressors.build("int8")
    body = codec.encode(x, 0)
    codec.decode(body, out)
    assert torch.equal(out, torch.cat([torch.zeros(256), torch.ones(256)]))
    assert body[:4] == bytes(4)
    assert body[8 : 8 + 256] == bytes(256)


@PROPERTY
@given(x=chunks(), fraction=st.sampled_from([0.001, 0.01, 0.1, 0.5, 1.0]))
def test_topk_is_the_exact_top_k(x: torch.Tensor, fraction: float) -> None:
    codec = compressors.build(f"topk:{fraction}")
    out = torch.empty_like(x)
    codec.decode(codec.encode(x, 0), out)
    k = math.ceil(fraction * x.numel())
    order = sorted(range(x.numel()), key=lambda i: (-abs(float(x[i])), i)) if x.numel() <= 600 else None
    if order is None:  # values only: ties may stand anywhere
        wanted = x.abs().sort(descending=True).values[:k]
        assert torch.equal(out.abs().sort(descending=True).values[:k], wanted)
        assert int(out.count_nonzero()) <= k
        kept = out.nonzero().view(-1)
        assert torch.equal(out[kept], x[kept])
    else:
        naive = torch.zeros_like(x)
        naive[order[:k]] = x[order[:k]]
        assert torch.equal(out, naive)


def test_topk_spends_48_bits_a_value() -> None:
    x = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    assert len(compressors.build("topk:0.01").encode(x, 0)) == 6 * math.ceil(0.01 * (1 << 18)) + 4 * 4


@pytest.mark.parametrize("spelling", EVERY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", [1, 100_000])
def test_what_is_not_finite_is_never_dropped(spelling: str, bad: float, count: int) -> None:
    x = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    x[5 : 5 + count] = bad
    codec = compressors.build(spelling)
    out = torch.zeros_like(x)
    body = codec.encode(x, 0)
    if spelling in {"identity", "bf16"}:
        codec.decode(body, out)
        assert int((~torch.isfinite(out)).sum()) == count
    else:
        with pytest.raises(compressors.DecodeError):
            codec.decode(body, out)


@pytest.mark.parametrize("spelling", EVERY)
def test_an_empty_chunk_has_a_body_too(spelling: str) -> None:
    codec = compressors.build(spelling)
    body = codec.encode(torch.empty(0), 0)
    assert len(body) <= codec.bytes_max(0)
    codec.decode(body, torch.empty(0))
    with pytest.raises(compressors.DecodeError):
        codec.decode(b"\0", torch.empty(0))


@pytest.mark.parametrize("wrong", [torch.zeros(4).double(), torch.zeros(2, 2), torch.zeros(8)[::2]])
@pytest.mark.parametrize("spelling", EVERY)
def test_only_flat_float32_is_a_chunk(spelling: str, wrong: torch.Tensor) -> None:
    codec = compressors.build(spelling)
    with pytest.raises(ValueError, match="a chunk is flat"):
        codec.encode(wrong, 0)
    with pytest.raises(ValueError, match="a chunk is flat"):
        codec.decode(b"", wrong)


@pytest.mark.parametrize("spelling", EVERY)
def test_codecs_may_be_shared_by_threads(spelling: str) -> None:
    codec = compressors.build(spelling)
    inputs = [torch.randn(100_000, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    wanted = [codec.encode(x, 0) for x in inputs]

    def round_trips(number: int) -> bool:
        out, again = torch.empty(100_000), torch.empty(100_000)
        codec.decode(wanted[number], again)
        for _ in range(10):
            body = codec.encode(inputs[number], 0)
            codec.decode(body, out)
            if body != wanted[number] or not torch.equal(out, again):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(round_trips, range(8)))


@pytest.mark.parametrize("spelling", EVERY)
def test_signalling_nans_warn_nobody(spelling: str) -> None:
    codec = compressors.build(spelling)
    x = torch.ones(300)
    x.view(torch.int32)[3] = 0x7FA00000
    out = torch.empty(300)
    try:
        codec.decode(codec.encode(x, 0), out)
    except compressors.DecodeError:
        assert not spelling.startswith(("identity", "bf16"))
    else:
        assert math.isnan(out[3])
