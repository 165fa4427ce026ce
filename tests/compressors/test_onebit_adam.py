"""1-bit Adam's parts against plain arithmetic, and the trap of a variance that is zero."""

import math

import pytest
import torch

import compressors
from compressors.onebit_adam import Frozen, adam_moments, one_bit, reply, send


def test_dense_moments_are_adams() -> None:
    generator = torch.Generator().manual_seed(0)
    m, v = torch.zeros(7), torch.zeros(7)
    wanted_m, wanted_v = [0.0] * 7, [0.0] * 7
    for _ in range(5):
        g = torch.randn(7, generator=generator)
        adam_moments(m, v, g, beta1=0.9, beta2=0.99)
        wanted_m = [0.9 * a + 0.1 * b for a, b in zip(wanted_m, g.tolist(), strict=True)]
        wanted_v = [0.99 * a + 0.01 * b * b for a, b in zip(wanted_v, g.tolist(), strict=True)]
    assert m.tolist() == pytest.approx(wanted_m, rel=1e-5)
    assert v.tolist() == pytest.approx(wanted_v, rel=1e-5)


def test_only_coordinates_with_a_variance_travel_and_move() -> None:
    frozen = Frozen.of(torch.tensor([4.0, 0.0, 1e-12, 16.0]))
    assert frozen.places.tolist() == [0, 2, 3]
    mean = 20 / 3
    assert frozen.root.tolist() == pytest.approx([2.0, math.sqrt(1e-3 * mean), 4.0], rel=1e-5)
    x = torch.ones(4)
    frozen.step(x, torch.tensor([2.0, 0.0, -8.0]), lr=0.5, epsilon=0.0)
    assert x.tolist() == pytest.approx([0.5, 1.0, 1.0, 2.0])


def test_no_variance_at_all_moves_nothing() -> None:
    frozen, x = Frozen.of(torch.zeros(3)), torch.ones(3)
    frozen.step(x, torch.empty(0), lr=1.0, epsilon=0.0)
    assert x.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_variance_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="second moment"):
        Frozen.of(torch.tensor([1.0, bad]))


def test_one_bit_keeps_the_length_and_has_two_values() -> None:
    c = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    c[5] = 0.0
    out = one_bit(c)
    assert float(out.norm()) == pytest.approx(float(c.norm()), rel=1e-5)
    assert len(set(out.tolist())) == 2
    assert bool((out[c != 0].sign() == c[c != 0].sign()).all())
    assert float(out[5]) > 0
    assert one_bit(torch.empty(0)).numel() == 0


@pytest.mark.parametrize("spelling", ["sign", "identity"])
def test_nothing_is_lost_either_way(spelling: str) -> None:
    """The momentum and both ends' errors are together the momentum that nothing was cut from."""
    codec, generator = compressors.build(spelling), torch.Generator().manual_seed(0)
    m, errors, own = torch.zeros(300), torch.zeros(4, 300), torch.zeros(300)
    decoded = torch.empty(300)
    for seed in range(6):
        gradients = torch.randn(4, 300, generator=generator)
        wanted = 0.9 * m + 0.1 * gradients.mean(0) + errors.mean(0) + own
        mean = torch.zeros(300)
        for g, error in zip(gradients, errors, strict=True):
            codec.decode(send(codec, m, g, error, beta1=0.9, seed=seed), decoded)
            mean += decoded / 4
        codec.decode(reply(codec, mean, own, seed=seed), m)
        torch.testing.assert_close(m + errors.mean(0) + own, wanted, rtol=1e-5, atol=1e-5)
        assert bool(errors.any()) == (spelling == "sign")
