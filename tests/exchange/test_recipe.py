"""What a coordinator makes of the run spec's aggregation table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import aggregators
from coordinator.submission.checks import check_spec
from exchange import recipe
from muster import plugins
from muster.errors import ConfigError
from muster.spec.model import RunSpec

MakeSpec = Callable[..., RunSpec]


@pytest.mark.parametrize(
    ("faults", "cohort", "f"), [(2, 100, 2), (0.1, 30, 3), (0.1, 39, 3), (0.3, 1, 0), (0.25, 8, 2), (0, 9, 0)]
)
def test_a_share_of_the_cohort_is_rounded_down(
    make_spec: MakeSpec, faults: float, cohort: int, f: int
) -> None:
    spec = make_spec(aggregation={"rule": "median", "faults": faults})
    assert recipe.pipeline(spec, cohort).faults == f


def test_without_a_rule_it_is_the_one_that_was_found_best(make_spec: MakeSpec) -> None:
    table = make_spec().aggregation
    assert (table.rule, table.pre) == ("caf", ("arc",))
    assert [table.faults_of(cohort) for cohort in (1, 2, 4, 5, 9, 10, 30)] == [0, 0, 1, 1, 1, 2, 6]
    assert all(recipe.pipeline(make_spec(), cohort).refuse(cohort) is None for cohort in range(1, 60))
    chosen = make_spec(aggregation={"rule": "mean"}).aggregation
    assert (chosen.rule, chosen.pre, chosen.faults) == ("mean", (), 0)
    again = type(chosen).model_validate(chosen.model_dump())
    assert again == chosen


@pytest.mark.parametrize("wrong", [0.5, -1, 1.5, -0.1])
def test_what_is_neither_a_number_nor_a_share_is_refused(make_spec: MakeSpec, wrong: float) -> None:
    with pytest.raises(ValueError, match=r"a number of updates .* or a share of the cohort"):
        make_spec(aggregation={"rule": "median", "faults": wrong})


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"aggregation": {"rule": "fltrust"}}, "fltrust needs one peer that is trusted"),
        ({"aggregation": {"rule": "krum", "faults": 1, "trusted_peer": "a"}}, "krum trusts no peer"),
        (
            {"aggregation": {"rule": "fltrust", "trusted_peer": "a"}, "sampling": {"policy": "poisson"}},
            "poisson sampling draws each by itself",
        ),
        ({"aggregation": {"rule": "mean", "faults": 0.2}}, "mean bears no faulty update"),
        (
            {"aggregation": {"rule": "krum", "faults": 1}, "privacy": {"secure_aggregation": True}},
            "krum must see each by itself",
        ),
        (
            {
                "aggregation": {"rule": "mean", "pre": ["arc"], "faults": 0},
                "privacy": {"secure_aggregation": True},
            },
            "arc and mean must see each by itself",
        ),
        (
            {"aggregation": {"rule": "mean"}, "privacy": {"secure_aggregation": True}},
            "secure aggregation is not built yet",
        ),
        ({"compression": {"down": "int8", "down_feedback": "ef21"}}, "sends differences"),
        (
            {"aggregation": {"rule": "krum", "faults": 1}, "sampling": {"count": 4}},
            r"krum needs n > 2f \+ 2: n is 4, f is 1; sampling.count is 4",
        ),
        (
            {"aggregation": {"rule": "krum", "faults": 0.2}, "sampling": {"count": 6, "over_select": 2.0}},
            r"n is 6, f is 2; f is 2 \(0.2 of a cohort of 12\); sampling.count is 6",
        ),
        (
            {"aggregation": {"rule": "bulyan", "faults": 0.3}},
            "no cohort is large enough: bulyan needs n >= 4f",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_at_submission(
    make_spec: MakeSpec, tables: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        check_spec(make_spec(**tables))
    assert caught.value.id == "spec.invalid"


def test_whatever_one_liar_moves_when_f_is_not_said_has_to_be_told_f() -> None:
    generator = torch.Generator().manual_seed(0)
    updates = torch.randn(9, 50, generator=generator)
    updates[4] = 1e6
    moved: set[str] = set()
    for group, kind in (("muster.rules", "rule"), ("muster.pre_rules", "pre")):
        for name in plugins.names(group):
            norms: list[float] = []
            for faults in (0, 1):
                how = (name, ()) if kind == "rule" else ("median", (name,))
                try:
                    made = aggregators.aggregate(updates, *how, faults=faults, trusted=0)
                except aggregators.RuleError:  # no f makes it robust, or it needs an option
                    break
                norms.append(float(made.vector.norm()))
            if len(norms) == 2 and norms[0] > 1e3 > norms[1]:
                moved.add(name)
    assert moved >= {"trimmed-mean", "mda", "nnm"}
    counting = {
        name
        for group in ("muster.rules", "muster.pre_rules")
        for name in plugins.names(group)
        if plugins.find(group, name).counts_faults
    }
    assert moved <= counting
    assert counting == {
        *("arc", "bulyan", "caf", "cge", "dnc", "krum", "mda", "meamed", "multi-krum", "mva"),
        *("nna", "nnm", "phocas", "smea", "trimmed-mean"),
    }


@pytest.mark.parametrize(
    ("faults", "n", "cohort", "told"),
    [
        (0.3, 6, 10, "krum needs n > 2f + 2: n is 6, f is 3; f is 3 (0.3 of a cohort of 10)"),
        (3, 6, 10, "krum needs n > 2f + 2: n is 6, f is 3"),
        (0.3, 9, 10, None),
        (0.3, 3, 3, None),  # f is 0
    ],
)
def test_lost_updates_never_lower_f(
    make_spec: MakeSpec, faults: float, n: int, cohort: int, told: str | None
) -> None:
    spec = make_spec(aggregation={"rule": "krum", "faults": faults})
    assert recipe.refuse(spec, n, cohort) == told


def test_where_f_comes_from_is_told(make_spec: MakeSpec) -> None:
    told = {
        faults: make_spec(aggregation={"rule": "median", "faults": faults}).aggregation.format_faults(11)
        for faults in (0, 2, 0.25, 0.05)
    }
    assert told == {
        0: "",
        2: "f is 2 (declared)",
        0.25: "f is 2 (0.25 of a cohort of 11)",
        0.05: "f is 0 (0.05 of a cohort of 11)",
    }


@pytest.mark.parametrize(
    "tables",
    [
        {"aggregation": {"rule": "krum", "faults": 1}},  # more peers may come
        {"aggregation": {"rule": "bulyan", "faults": 0.25}},  # 7 of them, or 11
        {"aggregation": {"rule": "median", "faults": 0.49}},
        {"aggregation": {"rule": "median", "pre": ["bucketing:2"], "faults": 0.2}},
        {"aggregation": {"rule": "nna", "faults": 1, "trusted_peer": "ada"}, "sampling": {"count": 3}},
    ],
)
def test_what_can_be_aggregated_one_day_is_not_refused(make_spec: MakeSpec, tables: dict[str, Any]) -> None:
    check_spec(make_spec(**tables))


def test_without_its_trusted_peer_a_round_says_so(make_spec: MakeSpec) -> None:
    spec = make_spec(aggregation={"rule": "fltrust", "trusted_peer": "ada"})
    check_spec(spec)
    assert recipe.missing_trusted(spec, ("ada", "bob")) is None
    told = recipe.missing_trusted(spec, ("bob",))
    assert told == "fltrust needs the update of its trusted peer 'ada', and there is none"
