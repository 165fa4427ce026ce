"""What runs on devices, without one: on CPU tensors against the CPU's kernels, and on tensors without memory.

A tensor of `FakeTensorMode` has a device, a type and a shape, but no values: whoever asks for one, or brings tensors of
two devices together, fails. What torch does on a real device `test_cuda.py` tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import compressors
from compressors import ChunkContext
from compressors.compose.planned import Planned, Planner
from compressors.core.replay import Replay, Term, write
from compressors.device import int8, natural, qsgd, sparse, terngrad
from compressors.device.codec import DeviceCodec
from compressors.quantizers.dither import dither

ELEMENTWISE = ("identity", "bf16", "fp16", "int8", "e4m3", "int4", "nf4", "e3m0")
SPARSE = ("topk:0.05", "topk:1.0", "randk:0.05", "randk:0.3:common:unscaled")
COMPOSED = ("topk:0.05+int8+rice+zstd", "topk:0.1+varint", "randk:0.1+bf16", "int8+zstd", "fedzip:0.1")
SUMS = ("sign", "qsgd:1", "qsgd:7", "qsgd:127")
STOCHASTIC = ("int8:stochastic", "natural", "terngrad", "qsgd:1", "qsgd:7", "qsgd:127")
ON_DEVICES = (*ELEMENTWISE, "sign", *STOCHASTIC)
FALLING_BACK = ("kmeans:4", "ferret:64", "one-byte:8", "powersgd:2")
EVERY = (*ON_DEVICES, *SPARSE, *COMPOSED, *FALLING_BACK)
SIZES = (0, 1, 2, 9, 64, 65, 255, 256, 257, 513, 1000, 1 << 18)
STRANGE: dict[str, Callable[[int], Tensor]] = {
    "zeros": torch.zeros,
    "negative zeros": lambda n: -torch.zeros(n),
    "denormals": lambda n: torch.randn(n, generator=seeded()) * 1e-40,
    "hardly normal": lambda n: torch.randn(n, generator=seeded()) * 2e-38,
    "tiny": lambda n: torch.randn(n, generator=seeded()) * 1e-30,
    "huge": lambda n: torch.randn(n, generator=seeded()) * 3e34,
    "of all magnitudes": lambda n: torch.ldexp(
        torch.randn(n, generator=seeded()), torch.randint(-140, 110, (n,), generator=seeded())
    ),
    "ties": lambda n: torch.randint(-3, 4, (n,), generator=seeded()).float(),
    "mostly zeros": lambda n: torch.randn(n, generator=seeded()) * (torch.arange(n) % 97 == 0),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lognormal_tailed(size: int, seed: int = 0) -> Tensor:
    x = torch.randn(size, generator=seeded(seed))
    return x * torch.randn(size, generator=seeded(seed + 1)).exp()


def decoded(decode: Callable[[bytes, Tensor], None], body: bytes, size: int) -> Tensor:
    out = torch.full((size,), 7.0)
    decode(body, out)
    return out


def check_both_ways(codec: compressors.Codec, x: Tensor, *, exactly: bool = True) -> None:
    """The host's body is the device's, and both ends read both bodies alike."""
    before = x.clone()
    here, there = codec.encode_host(x, 3), codec.encode_device(x, 3)
    assert torch.equal(x, before)
    assert len(there) <= codec.bytes_max(len(x))
    if exactly:
        assert there == here
    for body in (here, there):
        on_host = decoded(codec.decode_host, body, len(x))
        on_device = decoded(codec.decode_device, body, len(x))
        assert torch.equal(on_device.view(torch.int32), on_host.view(torch.int32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spelling", [*ELEMENTWISE, *SPARSE, *COMPOSED, "kmeans:4", "one-byte:8"])
def test_a_device_makes_the_bytes_of_the_cpu(spelling: str, size: int) -> None:
    check_both_ways(compressors.build(spelling).at(ChunkContext(5, 6)), lognormal_tailed(size))


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("spelling", [*ELEMENTWISE, *SPARSE, "topk:0.1+varint"])
def test_strange_values_are_the_same_on_a_device(spelling: str, strange: str) -> None:
    # The scale of a block of zeros may be below zero there or here.
    exactly = (spelling, strange) != ("int8", "negative zeros")
    check_both_ways(compressors.build(spelling), STRANGE[strange](1000), exactly=exactly)


@pytest.mark.parametrize("strange", [*STRANGE, "normal"])
@pytest.mark.parametrize("size", [1, 9, 256, 513, 1000])
@pytest.mark.parametrize("spelling", [*SUMS, *STOCHASTIC])
def test_what_a_device_adds_up_or_draws_decodes_alike(spelling: str, size: int, strange: str) -> None:
    x = STRANGE.get(strange, lognormal_tailed)(size)
    check_both_ways(compressors.build(spelling), x, exactly=False)


@pytest.mark.parametrize("size", [1, 100, 256, 1000, 1 << 18])
def test_a_sum_differs_by_no_more_than_its_rounding(size: int) -> None:
    x, codec = lognormal_tailed(size), compressors.build("sign")
    here, there = (
        decoded(codec.decode_host, body(x, 0), size) for body in (codec.encode_host, codec.encode_device)
    )
    assert torch.equal(here.sign(), there.sign())
    torch.testing.assert_close(there, here, rtol=2.0**-7, atol=0)
    assert float((here != there).double().mean()) < 0.01


def stochastic_body(spelling: str, x: Tensor, noise: Tensor) -> Tensor:
    """What `pack` makes with this noise."""
    match spelling.partition(":"):
        case "int8", _, _:
            return int8.pack(x, noise, 256, 2.0**-126)
        case "natural", _, _:
            return natural.pack(x, noise, 127, 255)
        case "terngrad", _, _:
            return terngrad.pack(x, noise, 320)
        case _, _, levels:
            return qsgd.pack(x, noise, int(levels), 512, 2.0**-120)


@pytest.mark.parametrize("size", [1, 9, 255, 320, 513, 1000, 1 << 18])
@pytest.mark.parametrize("spelling", STOCHASTIC)
def test_with_the_noise_of_the_cpu_a_device_makes_its_bytes(spelling: str, size: int) -> None:
    x, codec = lognormal_tailed(size), compressors.build(spelling)
    noise = torch.from_numpy(dither(11, size).astype(np.int32))
    assert stochastic_body(spelling, x, noise).numpy().tobytes() == codec.encode_host(x, 11)


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("spelling", STOCHASTIC)
def test_with_the_noise_of_the_cpu_strange_values_are_the_same(spelling: str, strange: str) -> None:
    x, codec = STRANGE[strange](1000), compressors.build(spelling)
    noise = torch.from_numpy(dither(11, 1000).astype(np.int32))
    assert stochastic_body(spelling, x, noise).numpy().tobytes() == codec.encode_host(x, 11)


@pytest.mark.parametrize("spelling", STOCHASTIC)
def test_what_a_device_draws_is_unbiased(spelling: str) -> None:
    """The mean of T draws errs by sqrt(omega / T), relative; a bias would stay."""
    codec, size, draws = compressors.build(spelling), 1500, 400
    x = torch.randn(size, generator=seeded())
    mean, variance = torch.zeros(size).double(), 0.0
    for seed in range(draws):
        out = decoded(codec.decode_device, codec.encode_device(x, seed), size).double()
        mean += out / draws
        variance += float((out - x).square().sum()) / draws
    assert variance <= codec.omega(size) * float(x.double().square().sum())
    assert float((mean - x).square().sum()) <= 1.2**2 * variance / draws  # no more than chance makes it


@pytest.mark.parametrize("spelling", STOCHASTIC)
def test_what_a_device_draws_comes_from_the_seed(spelling: str) -> None:
    codec, x = compressors.build(spelling), torch.randn(1500, generator=seeded())
    for seed in (0, 2**62, 2**64 + 5):
        assert codec.encode_device(x, seed) == codec.encode_device(x, seed)
        assert codec.encode_device(x, seed) != codec.encode_device(x, seed + 1)


@pytest.mark.parametrize("spelling", EVERY)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("size", "count"), [(1000, 1), (1000, 995), (1, 1)])
def test_what_is_not_finite_is_not_dropped_on_a_device(
    spelling: str, bad: float, size: int, count: int
) -> None:
    x = lognormal_tailed(size)
    x[size // 200 : size // 200 + count] = bad
    codec = compressors.build(spelling)
    body, out = codec.encode_device(x, 0), torch.full((size,), 7.0)
    if spelling in {"identity", "bf16"}:
        codec.decode_device(body, out)
        assert int((~torch.isfinite(out)).sum()) == count
        return
    for decode in (codec.decode_device, codec.decode_host):
        with pytest.raises(compressors.DecodeError):
            decode(body, out)
    assert bool((out == 7).all())


@pytest.mark.parametrize("spelling", [s for s in EVERY if s not in {"identity", "bf16"}])
def test_a_hostile_body_is_refused_before_the_device_sees_it(
    spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the host refuses the device's path does, and no kernel and no upload is reached."""
    codec, size = compressors.build(spelling), 1000
    good, rng = codec.encode_host(lognormal_tailed(size), 0), np.random.default_rng(1)
    bodies = [good[:-1], good + b"\0", b"", bytes(len(good)), b"\xff" * len(good), b"\x7f" * len(good)]
    for _ in range(100):
        other = bytearray(good)
        for at in rng.integers(0, len(good), 3):
            other[at] ^= 1 << int(rng.integers(0, 8))
        bodies.append(bytes(other))
    refused = 0
    for body in bodies:
        out = torch.full((size,), 7.0)
        try:
            codec.decode_host(body, out)
        except compressors.DecodeError:
            refused += 1
            with monkeypatch.context() as patch:
                for name in ("compressors.device.codec.upload", "compressors.sparsifiers.sparsifier.upload"):
                    patch.setattr(name, reached)
                with pytest.raises(compressors.DecodeError):
                    codec.decode_device(body, out)
            assert bool((out == 7).all())
        else:
            assert torch.equal(
                decoded(codec.decode_device, body, size).view(torch.int32), out.view(torch.int32)
            )
    assert refused >= 3


def reached(*_: Any) -> Tensor:
    raise AssertionError("the body was sent to the device")


class NothingCrosses(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Fails where an operation takes something from a device to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if any(each.device.type == "cuda" for each in given):
            here = [each for each in tree_leaves(made) if isinstance(each, Tensor) and each.is_cpu]
            assert not here, f"{func} brings something to the host"
        return made


def on_fake_device(run: Callable[[torch.device], Tensor]) -> Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True), NothingCrosses():  # type: ignore[no-untyped-call]  # as above
        return run(torch.device("cuda", 0))


@pytest.mark.parametrize("size", [1, 257, 1000, 1 << 18])
@pytest.mark.parametrize("spelling", ON_DEVICES)
def test_no_kernel_waits_for_its_device(spelling: str, size: int) -> None:
    codec = compressors.build(spelling)
    assert isinstance(codec, DeviceCodec)
    body = codec.encode_host(lognormal_tailed(size), 0)

    def pack(device: torch.device) -> Tensor:
        x = torch.empty(size, device=device)
        if spelling in STOCHASTIC:  # a generator is there only where a device is
            return stochastic_body(spelling, x, torch.empty(size, dtype=torch.int32, device=device))
        return codec.pack(x, 0)

    def unpack(device: torch.device) -> Tensor:
        out = torch.empty(size, device=device)
        codec.unpack(torch.empty(len(body), dtype=torch.uint8, device=device), out)
        return out

    packed = on_fake_device(pack)
    assert (packed.device.type, packed.dtype, packed.shape) == ("cuda", torch.uint8, (len(body),))
    if spelling not in {"identity", "bf16"}:  # these are one `copy_`, for which torch wants to see the device
        assert on_fake_device(unpack).device.type == "cuda"


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_no_choice_waits_for_its_device(k: int) -> None:
    def run(device: torch.device) -> Tensor:
        x = torch.empty(1000, device=device)
        values = sparse.gather(x, torch.arange(k, dtype=torch.int32, device=device))
        assert values.shape == (k + 1,)
        chosen = sparse.largest(x, k)
        indices, bits = chosen.unbind()
        sparse.scatter(indices, bits.view(torch.float32), x)
        return chosen

    chosen = on_fake_device(run)
    assert (chosen.device.type, chosen.dtype, chosen.shape) == ("cuda", torch.int32, (2, k))


def asks(x: Tensor) -> Tensor:
    return torch.full((4,), float(x.amax()))


def mixes(x: Tensor) -> Tensor:
    return x + torch.zeros(4)


def fetches(x: Tensor) -> Tensor:
    return x.cpu()


@pytest.mark.parametrize("careless", [asks, mixes, fetches])
def test_the_fake_device_finds_who_is_careless(careless: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(
        (AssertionError, RuntimeError), match=r"to the host|same device|not linked|local_scalar"
    ):
        on_fake_device(lambda device: careless(torch.empty(4, device=device)))


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device "meta" has no memory, so all that comes from it are zeros, and those are bounded."""

    def bounded(_: Tensor) -> bool:
        return True

    def zeros(packed: Tensor) -> Any:
        assert packed.is_meta
        return torch.zeros(packed.shape, dtype=packed.dtype).numpy()

    for module in ("device.codec", "sparsifiers.topk", "sparsifiers.randk"):
        monkeypatch.setattr(f"compressors.{module}.download", zeros)
    for module in ("ef14", "ef21", "econtrol", "dgc", "local_momentum", "masha"):
        monkeypatch.setattr(f"compressors.feedback.{module}.is_bounded", bounded)


@pytest.mark.usefixtures("no_device")
@pytest.mark.parametrize("spelling", [*ELEMENTWISE, "sign", *SPARSE, *COMPOSED, "int8|topk:0.1|int4+zstd"])
def test_a_chunk_is_encoded_where_it_lies(spelling: str) -> None:
    codec, x = compressors.build(spelling).at(ChunkContext(1, 2)), torch.empty(5000, device="meta")
    body = codec.encode(x, 0)
    assert 0 < len(body) <= codec.bytes_max(5000)
    codec.decode(codec.encode(torch.ones(5000), 0), x)


@pytest.mark.usefixtures("no_device")
@pytest.mark.parametrize("codec", ["topk:0.1", "topk:0.1+int8+rice", "int8|topk:0.5", "identity"])
@pytest.mark.parametrize(
    "feedback",
    [
        "none",
        "ef14",
        "ef21",
        "econtrol",
        "econtrol:0.01",
        "dgc",
        "dgc:0.9:nesterov",
        "momentum:0.9",
        "masha:0.9",
    ],
)
def test_a_feedback_works_where_its_state_lies(feedback: str, codec: str) -> None:
    """State on one device and scratch on another would not go together."""
    built, size = compressors.build_feedback(feedback), 5000
    x = torch.empty(size, device="meta")
    state = {name: torch.empty(size, device="meta") for name in built.state_names}
    assert built.encode(compressors.build(codec), x, state, 0)
    built.receive(x, {name: torch.empty(size, device="meta") for name in built.receiver_state_names})


def test_a_planner_and_a_replay_work_where_the_chunk_lies(no_device: None) -> None:
    del no_device
    planned = compressors.build("int8|topk:0.5")
    assert isinstance(planned, Planned)
    x = torch.empty(5000, device="meta")
    with pytest.raises(
        RuntimeError, match=r"item\(\)"
    ):  # an error is a number, which has to come to the host
        Planner(planned, 1).encode(x, 0)
    Replay(planned).decode(write([Term(0.5, 1, planned.encode(x, 0))]), x)
