"""Attacks: what each sends, by its formula."""

from __future__ import annotations

import pytest
import torch

import aggregators
from aggregators import attacks, registry

HONEST = torch.randn(6, 501, generator=torch.Generator().manual_seed(2))
NAMES = ["sign-flip", "alie", "ipm", "label-flip", "nan"]


def forged(name, honest=HONEST, **options):
    before = honest.clone()
    attack = attacks.build(name, **options)
    out = torch.empty(honest.shape[1])
    for start in range(0, honest.shape[1], 100):
        attack.forge(honest[:, start : start + 100], out[start : start + 100])
    assert torch.equal(honest, before)
    return out


def test_formulas():
    wide = HONEST.double()
    mean, spread = wide.mean(dim=0), wide.std(dim=0, correction=1)
    assert torch.allclose(forged("sign-flip").double(), -mean, atol=1e-6)
    assert torch.allclose(forged("sign-flip", scale=10).double(), -10 * mean, atol=1e-5)
    assert torch.allclose(forged("ipm").double(), -0.1 * mean, atol=1e-6)
    assert torch.allclose(forged("ipm", epsilon=2.5).double(), -2.5 * mean, atol=1e-6)
    assert torch.allclose(forged("alie").double(), mean + 1.5 * spread, atol=1e-5)
    assert torch.allclose(forged("alie", z=-0.5).double(), mean - 0.5 * spread, atol=1e-5)
    assert torch.allclose(forged("label-flip").double(), mean, atol=1e-6)
    assert bool(forged("nan").isnan().all())


def test_one_that_attacks_alone_turns_its_own_update():
    assert torch.equal(forged("sign-flip", HONEST[:1]), -HONEST[0])
    assert torch.equal(forged("label-flip", HONEST[:1]), HONEST[0])
    with pytest.raises(aggregators.RuleError, match="alie has to see 2 or more updates"):
        forged("alie", HONEST[:1])
    with pytest.raises(aggregators.RuleError, match="sign-flip has to see 1 or more updates"):
        forged("sign-flip", HONEST[:0])


def test_labels_are_flipped_and_others_left_alone():
    targets = torch.tensor([[0, 9, 4], [5, -100, 10]])
    flipped = attacks.build("label-flip").poison(targets, 10)
    assert flipped.tolist() == [[9, 0, 5], [4, -100, 10]]
    assert targets.tolist() == [[0, 9, 4], [5, -100, 10]]
    assert flipped.dtype == targets.dtype
    small = torch.tensor([0, 9], dtype=torch.uint8)
    assert attacks.build("label-flip").poison(small, 10).tolist() == [9, 0]
    assert torch.equal(attacks.build("sign-flip").poison(targets, 10), targets)
    with pytest.raises(aggregators.RuleError, match="class indices"):
        attacks.build("label-flip").poison(torch.rand(3), 10)
    with pytest.raises(aggregators.RuleError, match="at least two classes"):
        attacks.build("label-flip").poison(targets, 1)


def test_all_are_installed():
    assert sorted(NAMES) == list(registry.names(registry.ATTACKS))
    for name in NAMES:
        attack = attacks.build(name)
        assert attack.name == name
        assert attack.source


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("sign-flop", {}, "there is no attack 'sign-flop'; did you mean 'sign-flip'?"),
        ("krum", {}, "'krum' is a kind of aggregation rule, and a kind of attack was asked for"),
        ("sign-flip", {"scael": 2}, "sign-flip has no option 'scael'; did you mean 'scale'?"),
        ("sign-flip", {"scale": 0}, "sign-flip: scale must be above zero, and it is 0"),
        ("ipm", {"epsilon": "big"}, "ipm: epsilon must be a finite number, and it is 'big'"),
        ("alie", {"z": float("nan")}, "alie: z must be a finite number, and it is nan"),
        ("alie", {"z": True}, "alie: z must be a finite number, and it is True"),
        ("nan", {"scale": 2}, "nan has no option 'scale'; it has none"),
    ],
)
def test_a_wrong_request_is_told_in_one_sentence(name, options, sentence):
    with pytest.raises(aggregators.RuleError) as caught:
        attacks.build(name, **options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("attack", ["sign-flip", "alie", "ipm"])
def test_a_robust_pipeline_bears_what_a_mean_does_not(aggregate, attack):
    # Ten honest peers agree on a direction, but for noise; three colluders send the strongest of each attack.
    generator = torch.Generator().manual_seed(4)
    honest = 1 + 0.3 * torch.randn(10, 200, generator=generator)
    options = {"sign-flip": {"scale": 10}, "alie": {"z": -8.0}, "ipm": {"epsilon": 5}}[attack]
    bad = forged(attack, honest, **options)
    X = torch.cat([bad.repeat(3, 1), honest])
    centre = honest.mean(dim=0)
    naive = float((aggregate(X, "mean").vector - centre).norm())
    for rule in ("trimmed-mean", "median", "krum", "multi-krum", "geometric-median"):
        robust = aggregate(X, rule, pre=("arc", "nnm"), faults=3).vector
        assert float((robust - centre).norm()) < naive / 2
