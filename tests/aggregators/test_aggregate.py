"""One call, sources, and shards."""

from __future__ import annotations

import pickle
from multiprocessing import get_context

import pytest
import torch

from aggregators import MatrixSource, RowsSource, RuleError, Survey, aggregate, build
from aggregators.core import registry

D = 700_001  # three chunks, the last of them short


@pytest.fixture(scope="module")
def updates():
    X = torch.randn(9, D, generator=torch.Generator().manual_seed(3))
    X[:2] *= 5
    return X


def test_the_default_is_clipping_mixing_and_trimming(updates):
    result = aggregate(updates, faults=2)
    survey = Survey(build("trimmed-mean", pre=("arc", "nnm"), faults=2), 9, D)
    for start, X in MatrixSource(updates).chunks():
        survey.add(start, X)
    plan = survey.plan()
    vector = torch.empty(D)
    for start, X in MatrixSource(updates).chunks():
        plan.reduce(X, vector[start : start + X.shape[1]])
    assert torch.equal(result.vector, vector)
    assert torch.equal(result.weights, plan.weights)
    assert (result.selected, result.treatment, result.reason) == (plan.selected, plan.treatment, plan.reason)
    assert result.state == {}


@pytest.mark.parametrize("rule", ["mean", "trimmed-mean", "multi-krum", "geometric-median"])
def test_rows_of_their_own_memory_give_the_same_bytes(updates, rule):
    source = RowsSource([row.clone() for row in updates])
    assert torch.equal(aggregate(source, rule, faults=2).vector, aggregate(updates, rule, faults=2).vector)


def test_a_result_may_go_where_the_caller_says(updates):
    out = torch.full((D,), 7.0)
    result = aggregate(updates, "median", pre=(), faults=2, out=out)
    assert result.vector is out
    assert torch.equal(out, updates.median(dim=0).values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", ["mean", "median", "multi-krum", "centered-clipping"])
def test_half_precision_is_worked_out_in_float32(updates, rule, dtype):
    halves = updates[:, :3_000].to(dtype)
    result = aggregate(halves, rule, pre=("arc",), faults=2)
    wide = aggregate(halves.float(), rule, pre=("arc",), faults=2)
    assert torch.equal(result.vector, wide.vector.to(dtype))
    assert torch.equal(result.weights, wide.weights)
    halves[0, 5] = torch.nan
    assert not aggregate(halves, rule, pre=("arc",), faults=2).selected[0]
    out = torch.empty(3_000, dtype=dtype)
    assert aggregate(halves, rule, pre=("arc",), faults=2, out=out).vector is out


def test_every_rule_takes_the_smallest_input():
    for name in registry.names(registry.RULES):
        trusted = 0 if name in {"nna", "fltrust"} else None
        for X in (torch.ones(3, 1), torch.ones(9, 2, dtype=torch.float64), torch.ones(7, 10).T[:9]):
            if build(name).refuse(len(X)) is None:
                assert bool(aggregate(X, name, (), trusted=trusted).vector.isfinite().all()), name


@pytest.mark.parametrize("rule", ["median", "multi-krum"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_is_rejected_and_f_stays(updates, rule, wrong):
    spoilt = updates[:, :1_000].clone()
    spoilt[[3, 7], [0, 999]] = wrong
    others = [0, 1, 2, 4, 5, 6, 8]
    result = aggregate(spoilt, rule, pre=(), faults=2)
    assert torch.equal(result.vector, aggregate(spoilt[others], rule, pre=(), faults=2).vector)
    for row in (3, 7):
        assert not result.selected[row]
        assert result.weights[row] == 0
        assert bool(result.scores[row].isnan())
        assert result.treatment[row] == "rejected: it has a NaN or an infinity"
    assert all(result.treatment[row] != result.treatment[3] for row in others)


def test_below_the_bound_the_reason_counts_the_rejected():
    X = torch.randn(7, 10, generator=torch.Generator().manual_seed(3))
    X[[1, 2, 3]] = torch.nan
    with pytest.raises(RuleError) as caught:
        aggregate(X, "median", pre=(), faults=2)
    assert str(caught.value) == "median needs n > 2f: n is 4, f is 2, as 3 of 7 updates are not finite"


def test_a_result_that_overflows_is_an_error():
    X = torch.full((4, 3), 3e38)
    with pytest.raises(RuleError, match=r"not finite: sums of these updates overflow torch\.float32$"):
        aggregate(X, "median", pre=())
    with pytest.raises(
        RuleError, match=r"overflow torch\.float16, or an update that was said to be admitted"
    ):
        aggregate(torch.full((3, 3), 6e4).half() * torch.inf, "median", pre=(), admitted=True)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"updates": torch.zeros(4, 0)}, "nothing to aggregate: 4 updates of 0 coordinates"),
        ({"updates": torch.zeros(0, 4)}, "nothing to aggregate: 0 updates of 4 coordinates"),
        ({"updates": torch.zeros(4)}, r"updates are a matrix of floats, not \(4,\)"),
        ({"updates": torch.zeros(4, 2, dtype=torch.long)}, "matrix of floats"),
        ({"keys": ["a", "b"]}, "keys must be 4 different names"),
        ({"keys": ["a", "b", "c", "a"]}, "keys must be 4 different names"),
        ({"trusted": 4}, "the trusted update must be one of the 4"),
        ({"rule": "multi-krum", "m": 5, "faults": 0}, "needs m <= n - f"),
        ({"pre": ("arc:2",)}, "arc takes no value, and '2' stands behind its colon"),
    ],
)
def test_wrong_calls_are_told(call, sentence):
    arguments = {"updates": torch.ones(4, 2), "rule": "mean", "pre": ()} | call
    with pytest.raises(RuleError, match=sentence):
        aggregate(**arguments)


def test_rows_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        RowsSource([torch.zeros(3), torch.zeros(4)])
    with pytest.raises(ValueError, match="one or more vectors"):
        RowsSource([])


def _measure(shard, bounds, pipeline, kept, seed):
    """What a process does that holds only its own columns, of the updates and of what the rule keeps."""
    torch.set_num_threads(1)
    start, _, size = bounds
    survey = Survey(pipeline, len(shard) - kept, size, kept=kept, seed=seed)
    return [(start + at, survey.measure(start + at, X)) for at, X in MatrixSource(shard).chunks()]


def _reduce(shard, plan, kept):
    """The result and, below it, what the rule keeps."""
    torch.set_num_threads(1)
    out = torch.empty(1 + kept, shard.shape[1])
    for at, X in MatrixSource(shard).chunks():
        here = slice(at, at + X.shape[1])
        plan.reduce(X, out[0, here])
        if kept:
            plan.advance(X, out[1:, here])
    return out


@pytest.fixture(scope="module")
def processes():
    with get_context("spawn").Pool(2) as pool:
        yield pool


@pytest.mark.parametrize(
    ("rule", "pre"),
    [
        ("trimmed-mean", ("arc", "nnm")),
        ("krum", ()),
        ("geometric-median", ("nnm",)),
        ("median", ()),
        ("dnc", ("arc",)),  # inner products over sampled coordinates, which lie in both shards
        ("centered-clipping", ()),  # one vector kept from the round before
        ("foolsgold", ("nnm",)),  # one for each peer
    ],
)
def test_shards_in_other_processes_give_the_same_bytes(updates, processes, rule, pre):
    pipeline = build(rule, pre=pre, faults=2)
    names = pipeline.state_names([str(row) for row in range(9)])
    before = torch.randn(len(names), D, generator=torch.Generator().manual_seed(4))
    rows, kept, seed = torch.cat([updates, before]), len(names), 5
    cut = 2 * (1 << 18)  # shards are whole chunks
    shards = [rows[:, :cut].contiguous(), rows[:, cut:].contiguous()]
    bounds = [(0, cut, D), (cut, D, D)]
    survey = Survey(pipeline, 9, D, kept=kept, seed=seed)
    if survey.needed:
        asked = [(shard, bound, pipeline, kept, seed) for shard, bound in zip(shards, bounds, strict=True)]
        parts = processes.starmap(_measure, asked)
        for _, part in sorted((p for shard in parts for p in shard), key=lambda part: part[0]):
            survey.fold(part)
    plan = survey.plan()
    pieces = processes.starmap(_reduce, [(shard, plan, kept) for shard in shards])
    whole = aggregate(updates, rule, pre, faults=2, seed=seed, state=dict(zip(names, before, strict=True)))
    assert torch.equal(torch.cat(pieces, dim=1), torch.stack([whole.vector, *whole.state.values()]))


def test_a_survey_needs_its_columns():
    with pytest.raises(ValueError, match="no column has been surveyed"):
        Survey(build("krum", faults=1), 5, 10).plan()
    assert not Survey(build("median", faults=1), 5, 10).needed
    assert pickle.loads(pickle.dumps(build("krum", faults=1))) == build("krum", faults=1)
