"""What is said of every plug-in; and Bristle, which is not a rule of the server."""

from __future__ import annotations

import math

import pytest
import torch

import aggregators
from aggregators.core import registry
from aggregators.rules.bristle import Bristle


def test_everything_is_described():
    found = {each.name: each for each in aggregators.everything()}
    assert {"trimmed-mean", "bulyan", "flag", "arc", "bucketing", "alie", "backdoor", "bristle"} <= set(found)
    for each in found.values():
        assert each.source, each.name
        assert each.text, each.name
        assert each.summary.endswith("."), each.name
        assert each.text == each.summary or each.text.startswith(each.summary + "\n\n"), each.name
        if each.kind == "aggregation rule":
            assert each.score and each.breakdown
            assert "Bound:" in each.text or each.name == "mean", each.name
    assert len({each.summary for each in found.values()}) == len(found)
    for name in ("fltrust", "nna"):
        assert found[name].needs[1] == "one trusted update (aggregation.trusted_peer)"
    assert found["rfa"].options == {"nu": 0.1, "steps": 3}
    assert found["bristle"].kind == "peer-side rule"
    assert found["bristle"].needs == (
        "a local test set, which a peer has and a coordinator has not: no run spec can name it",
    )


def test_every_option_is_told():
    for each in aggregators.everything():
        assert list(each.knobs) == list(each.options), each.name
        for option, phrase in each.knobs.items():
            assert len(phrase) > 40, (each.name, option)
            assert not phrase.endswith("."), (each.name, option)
    for group in registry.KINDS:
        for name in registry.names(group):
            plugin = registry.find(group, name, object)
            assert set(getattr(plugin, "knobs", {})) == set(registry.option_names(plugin)), name


def test_an_attack_tells_what_it_has_to_see_and_to_know():
    for name in ("optimal-alie", "optimal-ipm", "optimal-sign-flip"):
        needs = aggregators.describe(name).needs
        assert needs == ("2 updates or more that it sees", "to know the pipeline that it attacks")
    assert aggregators.describe("fang").needs == ("2 updates or more that it sees",)
    assert aggregators.describe("sign-flip").needs == ()


def test_a_value_behind_a_colon_is_told_and_judged():
    assert aggregators.describe("bucketing").options == {"s": 2}
    assert aggregators.describe("bucketing:5").options == {"s": 5}
    assert aggregators.describe("dnc:2").options == {"draws": 2, "coordinates": 10_000, "c": 1.0}
    with pytest.raises(aggregators.RuleError, match="s must be an integer of at least 1"):
        aggregators.describe("bucketing:0")
    with pytest.raises(aggregators.RuleError, match="krum takes no value"):
        aggregators.describe("krum:2")
    with pytest.raises(aggregators.RuleError, match="did you mean 'bucketing'"):
        aggregators.describe("bucketin:2")


def test_an_unknown_name_tells_the_nearest():
    with pytest.raises(aggregators.RuleError, match="did you mean 'trimmed-mean'"):
        aggregators.describe("trimed-mean")
    with pytest.raises(aggregators.RuleError, match="'bristle' is a kind of peer-side rule"):
        aggregators.build("bristle")


def bristle_weight(own, peer, classes, c, best):
    """The definition, for one peer and one class, in plain numbers."""

    def score(k):
        delta = 10 * abs(peer[k] - own[k])
        return delta ** (3 + own[k]) if peer[k] > own[k] else -(delta ** (4 + own[k]))

    top = sorted((peer[k] for k in classes), reverse=True)[:best]
    mean = sum(top) / len(top)
    certainty = max(0.0, mean - math.sqrt(sum((v - mean) ** 2 for v in top) / len(top)))
    value = max(score(c), -100.0) if c in classes else sum(map(score, classes))
    return max(0.0, 10 / (1 + math.exp(-value / 100)) - 4) * certainty


def test_bristle_weighs_each_class_by_its_f1():
    generator = torch.Generator().manual_seed(2)
    own, peers = torch.rand(5, generator=generator), torch.rand(4, 5, generator=generator)
    familiar = torch.tensor([True, True, False, True, True])
    weights = Bristle().weights(own, peers, familiar)
    classes = [0, 1, 3, 4]
    for i in range(4):
        for c in range(5):
            wanted = bristle_weight(own.tolist(), peers[i].tolist(), classes, c, 3)
            assert float(weights[i, c]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_bristle_keeps_a_peer_out_that_does_worse_and_takes_one_in_that_does_better():
    own = torch.tensor([0.8, 0.8])
    peers = torch.tensor([[0.1, 0.1], [0.95, 0.95], [0.8, 0.8]])
    weights = Bristle().weights(own, peers, torch.tensor([True, True]))
    assert weights[0].tolist() == [0.0, 0.0]
    assert float(weights[1, 0]) > float(weights[2, 0]) > 0
    layer, others = torch.zeros(2, 3), torch.stack([torch.full((2, 3), v) for v in (1e6, 1.0, 2.0)])
    mixed = Bristle().integrate(layer, others, weights)
    share = weights[:, 0]
    assert float(mixed[0, 0]) == pytest.approx(
        float((share[1] + 2 * share[2]) / (1 + share[1] + share[2])), rel=1e-5
    )
    with pytest.raises(aggregators.RuleError, match="not finite"):
        Bristle().integrate(layer, others * torch.nan, weights)
    with pytest.raises(aggregators.RuleError, match="one class or more"):
        Bristle().weights(own, peers, torch.tensor([False, False]))
