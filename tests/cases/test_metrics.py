"""What a task calls a metric: numbers are kept, whatever they are of; the rest is named, and no round is lost by it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli.json_form import to_json
from cli.render import metrics_line
from coordinator.engine.decide import decide, new_run
from coordinator.engine.means import peers_mean
from coordinator.engine.state import (
    AssignmentState,
    AssignmentStatus,
    ModelReady,
    ModelVersion,
    RunSubmitted,
    Transition,
)
from coordinator.store import SqlStore
from coordinator.submission.checks import build_schedule
from muster.spec.model import RunSpec
from muster.task import metrics
from muster.task.metrics import METRICS_MAX, as_number, measured
from muster.work import Work
from protos.v1 import admin_pb2 as pb
from simulator.local import start_local

TASK = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Odd(muster.Task):
    def model(self):
        return nn.Linear(2, 2)

    def train_data(self, site):
        return TensorDataset(torch.randn(20, 2), torch.zeros(20).long())

    def evaluate(self, model, site):
        if site.coordinator:
            return {"accuracy": 0.9, "confusion": np.eye(3), "auc": float("nan"), "note": "fine"}
        index = site.data["index"]
        if index == 0:
            return 0.5, {"accuracy": 0.9}
        if index == 1:
            raise ValueError("there is no test set in this ward")
        return {"accuracy": torch.tensor(0.8), "perplexity": float("inf")}
"""

numbers = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.fractions(), st.decimals(allow_nan=False),
    st.floats(width=32).map(np.float32), st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.floats(width=32).map(torch.tensor), st.floats().map(lambda x: torch.tensor([x], dtype=torch.float64)),
    st.floats(width=16).map(lambda x: torch.tensor(x, dtype=torch.float16, requires_grad=True)),
)  # fmt: skip
others = st.one_of(
    st.none(), st.text(), st.binary(), st.complex_numbers(), st.lists(st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.floats(), max_size=2), st.tuples(st.floats()),
    st.just(np.eye(2)), st.just(torch.zeros(3)), st.just(torch.empty(0)), st.just(torch.empty((), device="meta")),
    st.just(np.str_("0.5")), st.just(torch.tensor(1j)), st.just(object()),
)  # fmt: skip


@given(good=st.dictionaries(st.from_regex("g[a-z]{1,8}", fullmatch=True), numbers, max_size=5),
       bad=st.dictionaries(st.from_regex("b[a-z]{1,8}", fullmatch=True), others, max_size=3))  # fmt: skip
def test_the_good_ones_are_kept_and_the_bad_ones_named(
    good: Mapping[str, Any], bad: Mapping[str, Any]
) -> None:
    found = measured({**bad, **good}, "Task.evaluate")
    assert found.values.keys() == good.keys()
    assert all(type(value) is float for value in found.values.values())
    assert bool(found.warnings) == bool(bad)
    for name in bad:
        assert repr(name) in found.warnings[0]


@given(st.dictionaries(st.from_regex("[a-z]{1,8}", fullmatch=True), st.floats()))
def test_every_float_goes_through_json_and_back(found: Mapping[str, float]) -> None:
    text = metrics.to_json(found)
    json.loads(text, parse_constant=pytest.fail)
    back = metrics.from_json(text)
    assert back == {name: pytest.approx(value, nan_ok=True, rel=0) for name, value in found.items()}


@pytest.mark.parametrize(
    ("given_back", "kind", "instead"),
    [
        ((0.5, {"accuracy": 0.9}), "a tuple of 2", '{"loss": loss, **metrics}'),
        ([0.5, {"accuracy": 0.9}], "a list of 2", '{"loss": loss, **metrics}'),
        (0.5, "a float", '{"loss": value}'),
        (torch.tensor(0.5), "a Tensor of shape ()", '{"loss": value}'),
        (None, "None", "a dict of numbers"),
        ("fine", "the text 'fine'", "a dict of numbers"),
    ],
)
def test_what_is_no_dict_is_refused_by_name_with_what_to_return(
    given_back: object, kind: str, instead: str
) -> None:
    found = measured(given_back, "Task.evaluate")
    assert found.values == {}
    (told,) = found.warnings
    assert f"returned {kind}" in told and f"return {instead}" in told


def test_how_many_and_how_long_is_bounded() -> None:
    many = measured({f"m{i:05d}": i for i in range(23_000)}, "Task.evaluate")
    assert len(many.values) == METRICS_MAX and "22900 are left out" in many.warnings[0]
    odd = measured({"x" * 1000: 1, "\x1b[31m": 1, "\ud800": 1, "": 1, ("a",): 1, 0: 0.5}, "Task.evaluate")
    assert odd.values == {"0": 0.5}
    assert len(odd.warnings[0]) < 1000 and odd.warnings[0].isprintable()
    kept, dropped = metrics.accepted({f"m{i:05d}": 1.0 for i in range(23_000)} | {"x" * 1000: 1.0})
    assert (len(kept), dropped) == (METRICS_MAX, 22_901)


class Raises:
    """Whose number is not to be had: a share of nothing, say."""

    def __init__(self, error: Exception, shape: object = None) -> None:
        self.error = error
        if shape is not None:
            self.shape = shape

    def __float__(self) -> float:
        raise self.error


class Frame:
    """As a table of one cell: it has a shape and no item()."""

    shape = (1, 1)


class Late(dict[str, float]):
    """Which only raises when it is read."""

    def items(self) -> Any:
        raise KeyError("auc")


class Key(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise ValueError("no name")


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (Frame(), "'odd' is a Frame of shape (1, 1)"),
        (Raises(ZeroDivisionError("no examples")), "'odd' is a Raises"),
        (Raises(OverflowError("and no int")), "'odd' is a Raises"),
        (Raises(LookupError(), shape=3), "'odd' is a Raises"),
        (Raises(LookupError(), shape=("a", None)), "'odd' is a Raises"),
        (Raises(LookupError(), shape=()), "'odd' is a Raises of shape ()"),
        (type("\x1b[31m", (), {})(), "'odd' is a "),
    ],
    ids=range(7),
)
def test_whatever_a_value_raises_costs_itself_only(odd: object, told: str) -> None:
    found = measured({"auc": 0.9, "odd": odd}, "Task.evaluate")
    assert found.values == {"auc": 0.9}
    assert f"left out: {told}" in found.warnings[0] and found.warnings[0].isprintable()


def test_a_mapping_that_cannot_be_read_is_told() -> None:
    found = measured(Late(auc=0.9), "Task.evaluate")
    assert found.values == {}
    assert found.warnings == (
        "Task.evaluate returned what cannot be read (KeyError): return a dict of numbers",
    )


def test_names_that_read_alike_are_told_and_the_first_is_kept() -> None:
    found = measured(
        {1: 0.1, "1": 0.2, np.int64(2): 0.3, "True": 0.4, Key("x"): 0.5, "auc": 0.9}, "Task.evaluate"
    )
    assert found.values == {"1": 0.1, "2": 0.3, "True": 0.4, "auc": 0.9}
    assert (
        "left out: a second '1', by another key that reads the same; the text 'x' as a name"
        in found.warnings[0]
    )
    assert measured({True: 0.1, "True": 0.2}, "Task.evaluate").values == {"True": 0.1}


def test_numbers_of_all_kinds_are_numbers() -> None:
    assert as_number(10**400) == math.inf
    assert as_number(-(10**400)) == -math.inf
    assert as_number(Decimal("0.5")) == as_number(Fraction(1, 2)) == as_number(np.array([[0.5]])) == 0.5
    assert as_number("0.5") is None


# -- the mean over peers --------------------------------------------------------------------------------


def peer(name: str, examples: int, **found: float) -> AssignmentState:
    return AssignmentState(
        assignment_id=name, run_id="run", round=1, peer_id=name, work=Work(role="evaluate", base=1), attempt=1,
        status=AssignmentStatus.DELIVERED, reason="", offered_at=0.0, metrics=found, examples=examples,
    )  # fmt: skip


def test_a_peer_that_does_not_count_counts_like_the_median_of_the_others() -> None:
    mean = peers_mean([peer("a", 90, auc=0.0), peer("b", 0, auc=1.0), peer("c", 0, auc=2.0)], None)
    assert mean.metrics == {"peers/auc": 1.0}
    ((cause, told),) = mean.warnings
    assert cause == "metrics.uncounted" and "2 of 3 peers do not say" in told and "the others, 90;" in told
    assert peers_mean([peer("a", 0, auc=1.0), peer("b", 0, auc=2.0)], None).warnings == ()


def test_no_cap_unless_it_is_set() -> None:
    both = [peer("a", 60_000, loss=1.0), peer("b", 12_000, loss=0.0)]
    assert peers_mean(both, None).metrics["peers/loss"] == pytest.approx(5 / 6)
    assert peers_mean(both, 10_000).metrics["peers/loss"] == 0.5


@given(st.lists(st.tuples(st.floats(), st.integers(0, 2**53)), min_size=1, max_size=6))
def test_the_mean_lies_within_what_is_finite(values: list[tuple[float, int]]) -> None:
    mean = peers_mean([peer(str(i), n, x=v) for i, (v, n) in enumerate(values)], None).metrics["peers/x"]
    finite = [value for value, _ in values if math.isfinite(value)]
    if finite:
        assert min(finite) <= mean <= max(finite)
    else:
        assert not math.isfinite(mean)


def test_a_mean_of_numbers_near_the_largest_is_their_mean() -> None:
    mean = peers_mean([peer("a", 1, x=1e308), peer("b", 1, x=1e308), peer("c", 1, x=1.5e308)], None)
    assert mean.metrics["peers/x"] == pytest.approx(1.1666666e308)


def test_names_without_end_are_bounded_to_those_that_most_report() -> None:
    noisy = [peer(f"p{i}", 1, **{f"m{i}.{j}": 1.0 for j in range(80)}, zz=0.5) for i in range(3)]
    mean = peers_mean(noisy, None)
    assert len(mean.metrics) == METRICS_MAX and mean.metrics["peers/zz"] == 0.5
    assert mean.warnings[0][0] == "metrics.too_many"


async def test_not_finite_is_kept_in_both_databases(database_url: str) -> None:
    spec = RunSpec.model_validate({"task": "digits:Digits", "rounds": 1})
    submitted = new_run(RunSubmitted(run_id="r", spec=spec, spec_toml="", request_id="q"), "r", 1.0)
    model = ModelVersion(version=0, round=0, digest="0", size_bytes=4, layout_digest="1")
    ready = ModelReady(run_id="r", model=model)
    started = decide(submitted.state, ready, 2.0, {}, build_schedule(spec))
    found = {"auc": math.nan, "loss": math.inf, "least": -math.inf, "accuracy": 0.5}
    evaluated = Transition(
        kind="evaluation.finished",
        entity="evaluation",
        key={"run_id": "r", "version": 0},
        before=None,
        values={"round": 0, "state": "FINISHED", "deadline_at": 9.0, "metrics_json": metrics.to_json(found)},
        reason="it is complete",
        at=3.0,
        run_id="r",
        data={"metrics": metrics.plain_all(found)},
    )
    store = await SqlStore.open(database_url)
    await store.commit([*submitted.transitions, *started.transitions, evaluated])
    await store.close()
    store = await SqlStore.open(database_url)
    row = await store.run("r")
    assert row is not None
    assert row.metrics == pytest.approx(found, nan_ok=True)
    told = (await store.events())[-1].data["metrics"]
    assert told == {"auc": "NaN", "loss": "Infinity", "least": "-Infinity", "accuracy": 0.5}
    await store.close()


# -- shown ----------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_shown_as_it_is() -> None:
    run = pb.Run(run_id="r", metrics={"auc": math.nan, "loss": math.inf, "accuracy": 0.5})
    assert metrics_line(run.metrics) == "accuracy 0.5, auc NaN, loss Infinity"
    assert to_json(run)["metrics"] == {"accuracy": 0.5, "auc": "NaN", "loss": "Infinity"}


async def test_one_bad_metric_loses_none_of_the_others_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "odd_metrics.py").write_text(TASK)
    spec = RunSpec.model_validate(
        {
            "task": "odd_metrics:Odd",
            "rounds": 1,
            "train": {"steps": 1},
            "round": {"peers_min": 3},
            "evaluate": {"every": 1, "on": ["coordinator", "peers"]},
        }
    )
    async with start_local(tmp_path, peers=3, allow=["*"], task_folders=[tmp_path]) as federation:
        row = await federation.run_to_end(spec)
        warnings = {each.cause: each.reason for each in await federation._store.warnings(row.run_id)}
        assignments = (await federation._store.round(row.run_id, 1)).assignments
    assert row.state == "FINISHED"
    assert row.metrics["accuracy"] == 0.9 and math.isnan(row.metrics["auc"])
    assert row.metrics["peers/accuracy"] == pytest.approx(0.8)
    assert row.metrics["peers/perplexity"] == math.inf
    assert "'confusion' is a ndarray of shape (3, 3)" in warnings["metrics.evaluate.0:coordinator"]
    assert "'note' is the text 'fine'" in warnings["metrics.evaluate.0:coordinator"]
    assert warnings["metrics.not_finite:coordinator"].endswith("gives auc NaN")
    first, second, third = sorted(a.peer_id for a in assignments if a.work.role == "evaluate")
    assert "returned a tuple of 2" in warnings[f"metrics.evaluate.0:{first}"]
    assert warnings[f"evaluate.failed:{second}"].endswith("ValueError: there is no test set in this ward")
    assert "perplexity Infinity" in warnings[f"metrics.not_finite.evaluate:{third}"]
