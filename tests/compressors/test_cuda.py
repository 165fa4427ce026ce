"""Chunks on a CUDA device: the same bodies as on the CPU, but for sums and noise."""

from __future__ import annotations

import math

import pytest
import torch

import compressors
from compressors import ChunkContext

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
EXACT = (
    *(
        "identity",
        "bf16",
        "fp16",
        "int8",
        "e4m3",
        "int4",
        "nf4",
        "e3m0",
        "topk:0.01",
        "topk:0.3",
        "randk:0.01",
    ),
    *(
        "randk:0.3:common:unscaled",
        "topk:0.05+int8+rice+zstd",
        "topk:0.1+varint",
        "randk:0.1+bf16",
        "int8+zstd",
    ),
    *("fedzip:0.1", "kmeans:4", "ferret:256", "one-byte:8", "powersgd:2", "int8|topk:0.01|int4"),
)
STOCHASTIC = ("int8:stochastic", "natural", "terngrad", "qsgd:1", "qsgd:7", "qsgd:127")
EVERY = (*EXACT, "sign", *STOCHASTIC)
SIZES = (0, 1, 7, 255, 256, 257, 1000, 65_537, 1 << 18)
PLACE = ChunkContext(5, 6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def lognormal_tailed(size):
    return torch.randn(size, generator=seeded()) * torch.randn(size, generator=seeded(1)).exp()


def decoded(codec, body, size, device):
    out = torch.full((size,), 7.0, device=device)
    codec.decode(body, out)
    return out.cpu()


@pytest.mark.parametrize("spelling", EXACT)
def test_a_device_makes_the_bytes_of_the_cpu(spelling):
    codec = compressors.build(spelling).at(PLACE)
    normal = torch.randn(1000, generator=seeded()).abs()
    strange = [normal * scale for scale in (0.0, 1e-40, 2e-38, 1e-30, 3e34)]
    for x in (*map(lognormal_tailed, SIZES), *strange):
        there = x.cuda()
        body = codec.encode(there, 3)
        assert torch.equal(there.cpu(), x)
        assert body == codec.encode(x, 3)


def test_ties_go_to_the_lower_index_on_a_device_too():
    x = torch.randint(-3, 4, (100_000,), generator=seeded()).float()
    for spelling in ("topk:0.1", "topk:0.5", "topk:1.0"):
        codec = compressors.build(spelling)
        assert codec.encode(x.cuda(), 0) == codec.encode(x, 0)


@pytest.mark.parametrize("spelling", EVERY)
def test_a_body_decodes_alike_on_both(spelling):
    codec = compressors.build(spelling).at(PLACE)
    for x in map(lognormal_tailed, SIZES):
        for body in (codec.encode(x, 3), codec.encode(x.cuda(), 3)):
            assert len(body) <= codec.bytes_max(len(x))
            here, there = (decoded(codec, body, len(x), device) for device in ("cpu", "cuda"))
            assert torch.equal(there.view(torch.int32), here.view(torch.int32))


def test_the_sums_of_sign_differ_by_their_rounding():
    codec, x = compressors.build("sign"), lognormal_tailed(1 << 18)
    here, there = (decoded(codec, codec.encode(each, 0), 1 << 18, "cpu") for each in (x, x.cuda()))
    assert torch.equal(there.sign(), here.sign())
    torch.testing.assert_close(there, here, rtol=2.0**-7, atol=0)


@pytest.mark.parametrize("spelling", STOCHASTIC)
def test_what_a_device_draws_is_unbiased_and_comes_from_the_seed(spelling):
    codec, size, draws = compressors.build(spelling), 1500, 400
    x = torch.randn(size, generator=seeded()).cuda()
    assert codec.encode(x, 2**62) == codec.encode(x, 2**62)
    assert codec.encode(x, 2**62) != codec.encode(x, 2**62 + 1)
    mean, variance, out = torch.zeros(size).double().cuda(), 0.0, torch.empty_like(x)
    for seed in range(draws):
        codec.decode(codec.encode(x, seed), out)
        mean += out.double() / draws
        variance += float((out.double() - x).square().sum()) / draws
    assert variance <= codec.omega(size) * float(x.double().square().sum())
    assert float((mean - x).square().sum()) <= 1.2**2 * variance / draws


@pytest.mark.parametrize("spelling", EVERY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_dropped_on_a_device(spelling, bad):
    codec, x = compressors.build(spelling), torch.randn(1000, generator=seeded()).cuda()
    x[5:900] = bad
    body, out = codec.encode(x, 0), torch.full_like(x, 7.0)
    if spelling in {"identity", "bf16"}:
        codec.decode(body, out)
        assert int((~torch.isfinite(out)).sum()) == 895
        return
    with pytest.raises(compressors.DecodeError):
        codec.decode(body, out)
    assert bool((out == 7).all())


@pytest.mark.parametrize("spelling", EVERY)
def test_a_hostile_body_leaves_the_device_as_it_was(spelling):
    codec = compressors.build(spelling)
    good = codec.encode(torch.randn(1000, generator=seeded()), 0)
    out = torch.full((1000,), 7.0, device="cuda")
    bodies = [good[:-1], good + b"\0", b""]
    if spelling not in {"identity", "bf16", "one-byte:8"}:
        bodies.append(b"\xff" * len(good))
    for body in bodies:
        with pytest.raises(compressors.DecodeError):
            codec.decode(body, out)
        assert bool((out == 7).all())
    torch.cuda.synchronize()  # where a device assert would show


@pytest.mark.parametrize("codec", ["topk:0.1", "topk:0.1+int8+rice", "int8|topk:0.5", "identity"])
@pytest.mark.parametrize("feedback", ["none", "ef14", "ef21", "econtrol", "dgc", "momentum", "masha:0.9"])
def test_a_feedback_does_the_same_on_a_device(feedback, codec):
    built, used, size = compressors.build_feedback(feedback), compressors.build(codec), 5000
    states = [
        {name: torch.zeros(size, device=device) for name in built.state_names} for device in ("cpu", "cuda")
    ]
    for number in range(5):
        x = torch.randn(size, generator=seeded(number))
        bodies = [
            built.encode(used, each, state, number) for each, state in zip((x, x.cuda()), states, strict=True)
        ]
        assert len(bodies[0]) > 0
        here, there = (decoded(used, body, size, "cpu") for body in bodies)
        if number == 0:  # later, multiply-adds that CUDA rounds once may tip a choice
            torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)
    for name in built.state_names:
        assert states[1][name].is_cuda
        assert float((states[1][name].cpu() - states[0][name]).norm()) <= 0.02 * float(
            states[0][name].norm() + 1
        )
