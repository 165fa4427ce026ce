"""What may be handed to `aggregate`, and the sentence where it may not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aggregators import MatrixSource, RowsSource, RuleError, aggregate

HALVES = [torch.float16, torch.bfloat16]
RULES = ["mean", "median", "krum", "dnc", "centered-clipping"]


def drawn(n=9, d=50):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1))


class Chunks:
    """A source that is nothing else, its chunks all in one buffer."""

    def __init__(self, X, width):
        self.n, self.size = X.shape
        self._X, self._width = X, width

    def chunks(self):
        buffer = torch.empty(self.n, self._width, dtype=self._X.dtype)
        for start in range(0, self.size, self._width):
            part = self._X[:, start : start + self._width]
            buffer[:, : part.shape[1]] = part
            yield start, buffer[:, : part.shape[1]]


SOURCES = {
    "matrix": MatrixSource,
    "rows": lambda X: RowsSource(list(X)),
    "chunks": lambda X: Chunks(X, 16),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rule", RULES)
def test_half_precision_of_a_source_is_worked_out_in_float32(source, dtype, rule):
    halves = (30 * drawn()).to(dtype)  # of squares that float16 cannot hold
    options = {"coordinates": 10} if rule == "dnc" else {}
    pre = ("arc",)
    wanted = aggregate(halves.float(), rule, pre, faults=2, **options)
    result = aggregate(SOURCES[source](halves), rule, pre, faults=2, **options)
    assert result.vector.dtype == dtype
    assert torch.allclose(result.vector.float(), wanted.vector, rtol=1e-2, atol=1e-3)
    assert torch.allclose(result.weights, wanted.weights, rtol=1e-5)
    out = torch.empty(50, dtype=dtype)
    assert aggregate(SOURCES[source](halves), rule, pre, faults=2, out=out, **options).vector is out
    assert torch.equal(out, result.vector)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("source", [*SOURCES, "tensor"])
def test_no_gradient_follows(rule, dtype, source):
    X = drawn().to(dtype)
    followed = X.clone().requires_grad_()
    given = followed if source == "tensor" else SOURCES[source](followed)
    out = torch.empty(50, dtype=dtype, requires_grad=True)
    state = {"center": torch.zeros(50, requires_grad=True)}
    weights = torch.ones(9, requires_grad=True)
    result = aggregate(given, rule, (), state=state, weights=weights, out=out)
    assert result.vector is out
    assert torch.equal(out.detach(), aggregate(X, rule, ()).vector)
    assert not aggregate(given, rule, ()).vector.requires_grad
    assert out.grad_fn is None


@pytest.mark.parametrize(
    "updates",
    [
        drawn().numpy(),
        list(drawn()),
        None,
        drawn().to(torch.float8_e4m3fn),
        drawn().to_sparse(),
        drawn().to("meta"),
        drawn().int(),
        drawn() > 0,
        drawn().to(torch.complex64),
        drawn()[0],
        RowsSource(list(drawn().int())),
        RowsSource(list(drawn().to(torch.float8_e4m3fn))),
        Chunks(drawn().int(), 16),
    ],
)
@pytest.mark.parametrize("rule", ["median", "krum"])
def test_what_is_no_matrix_of_floats_is_one_sentence(updates, rule):
    with pytest.raises(RuleError, match=r"^updates are a matrix of floats, "):
        aggregate(updates, rule, ())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"trusted": True}, "the trusted update must be one of the 9.* it is True"),
        ({"trusted": 1.0}, "the trusted update must be one of the 9.* it is 1.0"),
        ({"trusted": -1}, "the trusted update must be one of the 9"),
        ({"seed": "a"}, "a seed is an integer, and it is 'a'"),
        ({"seed": None}, "a seed is an integer, and it is None"),
        ({"seed": 1.5, "rule": "dnc"}, "a seed is an integer"),
        ({"faults": True}, "faults must be an integer of at least 0, and it is True"),
        ({"state": [1]}, "the state must be a mapping of names to vectors, not a list"),
        (
            {"state": {"center": [0.0] * 50}, "rule": "centered-clipping"},
            "'center' must be 50 finite numbers",
        ),
        ({"state": {"center": torch.zeros(3)}, "rule": "centered-clipping"}, "'center' must be 50 finite"),
        ({"out": [0.0] * 50}, "out must be a tensor, not a list"),
        ({"weights": [1.0] * 8}, "weights must be 9 finite numbers"),
        ({"weights": torch.ones(9, 1)}, "weights must be 9 finite numbers"),
        ({"weights": [1.0] * 8 + [-1.0]}, "weights must be 9 finite numbers that are not negative"),
        ({"weights": [1.0] * 8 + [torch.nan]}, "weights must be 9 finite numbers"),
        ({"weights": ["a"] * 9}, "weights must be 9 finite numbers"),
        ({"weights": torch.ones(9, dtype=torch.complex64)}, "weights must be 9 finite numbers"),
        ({"weights": [0] * 9, "rule": "mean"}, "weights of the 9 updates that count must not all be zero"),
        ({"tau": 10**400, "rule": "centered-clipping"}, "tau must be a finite number"),
    ],
)
@pytest.mark.parametrize("rule", ["mean", "krum"])
def test_wrong_arguments_are_one_sentence_whatever_the_rule(arguments, sentence, rule):
    with pytest.raises(RuleError, match=sentence):
        aggregate(drawn(), **{"rule": rule, "pre": (), **arguments})


def test_weights_are_counted_before_an_update_is_rejected():
    X = drawn(4)
    X[1] = torch.nan
    for wrong in ([1.0] * 3, [1.0] * 5):
        with pytest.raises(RuleError, match="weights must be 4 finite numbers"):
            aggregate(X, "mean", (), weights=wrong)
    with pytest.raises(RuleError, match="weights of the 3 updates that count must not all be zero"):
        aggregate(X, "mean", (), weights=[0, 1, 0, 0])
    weights = aggregate(X, "mean", (), weights=[2, 9, 1, 1]).weights
    assert weights.tolist() == pytest.approx([0.5, 0.0, 0.25, 0.25])


@pytest.mark.parametrize("size", [1e308, 5e-324, 1])
def test_weights_of_any_scale_and_kind_are_shares(size):
    numbers = [size] * 9
    for weights in (numbers, tuple(numbers), np.array(numbers), torch.tensor(numbers, dtype=torch.float64)):
        assert aggregate(drawn(), "mean", (), weights=weights).weights.tolist() == pytest.approx([1 / 9] * 9)


def test_numbers_of_numpy_are_numbers():
    same = aggregate(drawn(), "multi-krum", (), faults=2, m=3, seed=4, trusted=0)
    result = aggregate(
        drawn(), "multi-krum", (), faults=np.int64(2), m=np.int32(3), seed=np.uint64(4), trusted=np.int8(0)
    )
    assert torch.equal(result.vector, same.vector)
    assert result.reason == same.reason


def test_a_single_pre_rule_needs_no_sequence():
    alone = aggregate(drawn(), "median", "arc", faults=2)
    assert alone.reason == aggregate(drawn(), "median", ("arc",), faults=2).reason
    assert aggregate(drawn(), "median", "bucketing:3", faults=1).reason.startswith("bucketing made 3 means")


class TestOut:
    @pytest.mark.parametrize(
        "out",
        [
            torch.empty(49),
            torch.empty(51),
            torch.empty(1, 50),
            torch.empty(100)[::2],
            torch.empty(50).double(),
            torch.empty(50).half(),
            torch.empty(50, device="meta"),
        ],
    )
    @pytest.mark.parametrize("rule", ["median", "krum"])
    def test_it_has_the_results_shape_and_type(self, out, rule):
        for updates in (drawn(), RowsSource(list(drawn()))):
            with pytest.raises(RuleError, match=r"^out must be 50 torch.float32 side by side on cpu, not"):
                aggregate(updates, rule, (), out=out)

    @pytest.mark.parametrize("rule", ["median", "krum", "trimmed-mean"])
    def test_it_lies_apart_from_the_updates(self, rule):
        X = torch.randn(12, 60, generator=torch.Generator().manual_seed(1))
        before = X.clone()
        updates = X[:9, :50]
        inside = [X[3, :50], X[8, :50], X[0, 5:55], X.flatten()[470:520]]
        turned = torch.randn(50, 9).T  # the values of a row lie apart
        cases = [(turned, turned.T.flatten()[7:57])]
        for given in (updates, MatrixSource(updates), RowsSource(list(updates))):
            cases += [(given, out) for out in inside]
        for given, out in cases:
            with pytest.raises(RuleError, match="out lies where an update or a state does"):
                aggregate(given, rule, (), out=out)
        assert torch.equal(X, before)
        wanted = aggregate(before[:9, :50], rule, ()).vector
        for out in (X[9, :50], X[11, 10:]):  # in the same memory, but not in an update's
            assert torch.equal(aggregate(updates, rule, (), out=out).vector, wanted)

    def test_it_lies_apart_from_the_state(self):
        center = torch.zeros(50)
        with pytest.raises(RuleError, match="out lies where an update or a state does"):
            aggregate(drawn(), "centered-clipping", (), state={"center": center}, out=center)
        assert not center.any()


def test_the_state_of_who_is_absent_or_rejected_stays():
    X, names = drawn(), list("abcdefghi")
    first = aggregate(X, "foolsgold", (), keys=names)
    some = X[:5].clone()
    some[2, 0] = torch.nan
    second = aggregate(some, "foolsgold", (), keys=names[:5], state=first.state)
    assert set(second.state) == set(first.state) == {f"history/{name}" for name in names}
    assert torch.equal(second.state["history/g"], X[6])
    assert torch.equal(second.state["history/c"], X[2])
    assert torch.equal(second.state["history/a"], 2 * X[0])
    assert torch.equal(first.state["history/a"], X[0])
    assert aggregate(X, "median", (), state=second.state).state == second.state
