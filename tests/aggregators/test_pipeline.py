"""Building, refusing, weighing; chunks; rows that must not be there."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
import torch

import aggregators
from aggregators.core import registry
from aggregators.core.rule import Rule

RULES = ["mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median"]
PRE = [(), ("arc",), ("nnm",), ("arc", "nnm")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"rule": "trimed-mean"},
            "there is no aggregation rule 'trimed-mean' (did you mean 'trimmed-mean'?)",
        ),
        ({"rule": "nnm"}, "'nnm' is a kind of pre-rule, and a kind of aggregation rule was asked for"),
        ({"rule": "mean", "pre": ["nmm"]}, "there is no pre-rule 'nmm' (did you mean 'nnm'?)"),
        (
            {"rule": "mean", "pre": ["zzz"]},
            "there is no pre-rule 'zzz' (known: arc, bucketing, clipping, nnm)",
        ),
        ({"rule": "krum", "options": {"m": 2}}, "krum has no option 'm' (it has none)"),
        ({"rule": "multi-krum", "options": {"mm": 2}}, "multi-krum has no option 'mm' (did you mean 'm'?)"),
        ({"rule": "median", "options": {"faults": 2}}, "median has no option 'faults' (it has none)"),
        (
            {"rule": "multi-krum", "options": {"m": 2.0}},
            "multi-krum: m must be an integer of at least 1, and it is 2.0",
        ),
        (
            {"rule": "krum", "faults": -1},
            "aggregation: faults must be an integer of at least 0, and it is -1",
        ),
        (
            {"rule": "krum", "faults": True},
            "aggregation: faults must be an integer of at least 0, and it is True",
        ),
        (
            {"rule": "mean", "faults": 1},
            "mean bears no faulty update, and faults is 1: "
            "choose a robust rule, or put a pre-rule before it that clips, such as arc",
        ),
    ],
)
def test_a_wrong_request_is_told_in_one_sentence(arguments, sentence):
    with pytest.raises(aggregators.RuleError) as caught:
        aggregators.build(arguments.pop("rule"), **arguments)
    assert str(caught.value) == sentence


def test_a_plug_in_that_is_no_rule_is_refused(monkeypatch):
    point = EntryPoint("broken", "builtins:dict", registry.RULES)
    monkeypatch.setattr("methods.registry.installed", lambda group: {"broken": point})
    with pytest.raises(aggregators.RuleError, match=r"builtins:dict, installed as .* 'broken', is no Rule"):
        aggregators.build("broken")


def test_an_option_without_a_default_must_be_given():
    @dataclass(frozen=True, kw_only=True)
    class Picky:
        size: int

    with pytest.raises(aggregators.RuleError, match="picky needs the option 'size'"):
        registry.construct(Picky, "picky", {})


def test_all_plug_ins_are_installed_and_described():
    assert set(RULES) <= set(registry.names(registry.RULES))
    for name in RULES:
        found = registry.find(registry.RULES, name, Rule)
        assert found.name == name
        assert found.source
        assert found.breakdown
        assert found.score


@pytest.mark.parametrize(
    ("rule", "pre", "faults", "least", "sentence"),
    [
        ("mean", (), 0, 1, "an aggregation needs at least one update: n is 0"),
        ("median", (), 0, 1, "an aggregation needs at least one update: n is 0"),
        ("median", (), 2, 5, "median needs n > 2f: n is 4, f is 2"),
        ("trimmed-mean", (), 3, 7, "trimmed-mean needs n > 2f: n is 6, f is 3"),
        ("geometric-median", (), 1, 3, "geometric-median needs n > 2f: n is 2, f is 1"),
        ("krum", ("nnm",), 1, 5, "krum needs n > 2f + 2: n is 4, f is 1"),
        ("trimmed-mean", ("arc", "nnm"), 1, 3, "arc needs n > 2f: n is 2, f is 1"),
    ],
)
def test_one_below_the_bound_is_refused(rule, pre, faults, least, sentence):
    pipeline = aggregators.build(rule, pre=pre, faults=faults)
    assert pipeline.refuse(least) is None
    assert pipeline.refuse(least - 1) == sentence
    with pytest.raises(aggregators.RuleError) as caught:
        pipeline.plan(least - 1, torch.eye(max(least - 1, 1), dtype=torch.float64))
    assert str(caught.value) == sentence


def test_at_the_bound_every_rule_gives_a_result(aggregate):
    for faults in range(4):
        for rule, n in (
            ("median", 2 * faults + 1),
            ("trimmed-mean", 2 * faults + 1),
            ("krum", 2 * faults + 3),
        ):
            X = torch.randn(n, 9, generator=torch.Generator().manual_seed(faults))
            assert bool(aggregate(X, rule, faults=faults, pre=("arc", "nnm")).vector.isfinite().all())


def test_only_distances_cost_a_pass():
    assert [rule for rule in RULES if aggregators.build(rule).needs_gram] == RULES[3:]
    assert all(aggregators.build(rule, pre=("arc",)).needs_gram for rule in RULES)
    # With no geometry to read, the plan asks for none and mixes nothing.
    plan = aggregators.build("median").plan(4, None)
    assert plan.weights.tolist() == [0.25] * 4
    with pytest.raises(aggregators.RuleError, match="needs a Gram matrix of 5 rows, not None"):
        aggregators.build("krum").plan(5, None)
    with pytest.raises(aggregators.RuleError, match=r"needs a Gram matrix of 5 rows, not \(4, 4\)"):
        aggregators.build("krum").plan(5, torch.eye(4))


class TestWeights:
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]])

    def test_a_mean_normalises_them(self, aggregate):
        result = aggregate(self.X, "mean", weights=torch.tensor([10, 30, 0]))
        assert result.vector.tolist() == [0.25, 0.75]
        assert result.plan.scores.tolist() == [0.25, 0.75, 0.0]
        assert result.plan.selected == (True, True, False)
        assert result.plan.reason == "mean of 3 updates, by their weights"

    def test_without_them_it_is_uniform(self, aggregate):
        result = aggregate(self.X, "mean")
        assert torch.allclose(result.vector, self.X.mean(dim=0))
        assert result.plan.reason == "mean of 3 updates, all alike"

    @pytest.mark.parametrize(("rule", "pre"), [("median", ()), ("krum", ()), ("mean", ("nnm",))])
    def test_robust_rules_do_not_believe_them(self, aggregate, rule, pre):
        pipeline = aggregators.build(rule, pre=pre)
        assert not pipeline.uses_weights
        declared = aggregate(self.X, rule, pre=pre, weights=torch.tensor([1.0, 1.0, 1e9]))
        assert torch.equal(declared.vector, aggregate(self.X, rule, pre=pre).vector)

    @pytest.mark.parametrize(
        "wrong", [[0.0, 0.0, 0.0], [1.0, -1.0, 2.0], [1.0, torch.nan, 1.0], [1.0, torch.inf, 1.0], [1.0, 1.0]]
    )
    def test_wrong_ones_are_refused(self, aggregate, wrong):
        with pytest.raises(
            aggregators.RuleError, match=r"weights (must be 3 finite numbers|of the 3 updates)"
        ):
            aggregate(self.X, "mean", weights=torch.tensor(wrong))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pre", PRE, ids="-".join)
def test_chunks_of_any_width_equal_the_whole(aggregate, rule, pre):
    faults = 3 if "arc" in pre or rule != "mean" else 0
    X = torch.randn(10, 40_000, generator=torch.Generator().manual_seed(3))
    X[:3] *= 5
    whole = aggregate(X, rule, pre=pre, faults=faults)
    for chunk in (40_000 // 7, 16_385):
        parts = aggregate(X, rule, pre=pre, faults=faults, chunk=chunk)
        assert parts.plan.selected == whole.plan.selected
        assert torch.allclose(parts.vector, whole.vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_the_result_is_no_view_of_an_input(aggregate, rule):
    X = torch.randn(5, 30, generator=torch.Generator().manual_seed(3))
    result = aggregate(X, rule)
    kept = result.vector.clone()
    X.zero_()
    assert torch.equal(result.vector, kept)


def test_the_same_input_gives_the_same_bytes(aggregate):
    X = torch.randn(9, 5_000, generator=torch.Generator().manual_seed(3))
    one, other = (aggregate(X, "trimmed-mean", pre=("arc", "nnm"), faults=2) for _ in range(2))
    assert torch.equal(one.vector, other.vector)
    assert one.plan.treatment == other.plan.treatment


def test_a_plan_serves_both_precisions():
    X = torch.randn(5, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plan = aggregators.build("median", pre=("nnm",), faults=1).plan(5, X @ X.T)
    wide, narrow = torch.empty(30, dtype=torch.float64), torch.empty(30)
    plan.reduce(X, wide)
    plan.reduce(X.float(), narrow)
    assert torch.allclose(wide.float(), narrow, atol=1e-6)


def test_reduce_refuses_what_does_not_fit():
    plan = aggregators.build("median").plan(3)
    with pytest.raises(ValueError, match=r"a chunk of 3 rows of floats was due, not \(2, 4\)"):
        plan.reduce(torch.zeros(2, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="room for 4"):
        plan.reduce(torch.zeros(3, 4), torch.zeros(5))
    with pytest.raises(ValueError, match="room for 4"):
        plan.reduce(torch.zeros(3, 4), torch.zeros(4, dtype=torch.float64))


def test_more_bad_rows_than_faults_are_refused():
    X = torch.randn(9, 30, generator=torch.Generator().manual_seed(3))
    X[[1, 4, 8]] = torch.nan
    gram = aggregators.Gram(9)
    gram.add(X)
    with pytest.raises(
        aggregators.RuleError, match="3 of 9 updates have no finite norm, and no more than f = 2"
    ):
        aggregators.build("krum", faults=2).plan(9, gram.matrix)


def test_products_that_overflow_between_finite_norms_cost_the_longer_row():
    gram = torch.eye(5, dtype=torch.float64)
    gram[0, 0] = 4.0
    gram[0, 3] = gram[3, 0] = torch.inf
    plan = aggregators.build("multi-krum", faults=1).plan(5, gram)
    assert plan.selected == (False, True, True, True, True)
    assert plan.treatment[0].startswith("left out: its score inf")


class TestGram:
    def test_is_the_sum_over_chunks(self):
        X = torch.randn(6, 50_001, generator=torch.Generator().manual_seed(1))
        exact = X.double() @ X.double().T
        gram = aggregators.Gram(6)
        for start in range(0, 50_001, 9_999):
            gram.add(X[:, start : start + 9_999])
        assert torch.allclose(gram.matrix, exact, rtol=0, atol=1e-6 * float(exact.max()))
        assert torch.equal(gram.matrix, gram.matrix.T)
        assert gram.matrix.dtype == torch.float64

    def test_one_bad_row_spoils_only_its_own(self):
        X = torch.randn(5, 100, generator=torch.Generator().manual_seed(1))
        clean = aggregators.Gram(5)
        clean.add(X)
        X[2, 50] = torch.nan
        gram = aggregators.Gram(5)
        gram.add(X)
        others = [0, 1, 3, 4]
        assert torch.equal(gram.matrix[others][:, others], clean.matrix[others][:, others])
        assert bool(gram.matrix[2].isnan().all())

    def test_refuses_what_does_not_fit(self):
        with pytest.raises(ValueError, match="a chunk of 3 rows"):
            aggregators.Gram(3).add(torch.zeros(4, 2))
        with pytest.raises(ValueError, match="at least one row"):
            aggregators.Gram(0)
