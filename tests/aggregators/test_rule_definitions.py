"""Rules of coordinates, of weights and of memory, and two pre-rules, against plain loops over their definitions."""

from __future__ import annotations

import math

import pytest
import torch

import aggregators
from aggregators import RuleError
from aggregators.rules.flag import flag_median
from aggregators.rules.foolsgold import foolsgold_weights

SHAPES = [(1, 0), (2, 0), (3, 1), (6, 2), (7, 3), (10, 3)]


def rows(n, d=5, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest(column, keep, centre):
    order = sorted(column.tolist(), key=lambda value: (abs(value - centre), value))
    return sum(order[:keep]) / keep


@pytest.mark.parametrize(("n", "f"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_meamed_and_phocas(aggregate, n, f, seed):
    X = rows(n, seed=seed)
    X[: n // 3] *= 30
    for k in range(X.shape[1]):
        column = X[:, k].sort().values
        median = float(column[[(n - 1) // 2, n // 2]].mean())
        trimmed = float(column[f : n - f].mean())
        meamed = float(aggregate(X, "meamed", faults=f).vector[k])
        phocas = float(aggregate(X, "phocas", faults=f).vector[k])
        assert meamed == pytest.approx(nearest(column, n - f, median))
        assert phocas == pytest.approx(nearest(column, n - f, trimmed))


def test_of_two_values_equally_far_the_lesser_is_kept(aggregate):
    X = torch.tensor([[-1.0], [0.0], [1.0], [5.0]])
    assert float(aggregate(X[:3], "meamed", faults=1).vector) == -0.5
    assert float(aggregate(X[:3], "phocas", faults=1).vector) == -0.5


def test_the_vote_on_signs(aggregate):
    X = torch.tensor([[1.0, -2.0, 0.0, 3.0], [5.0, -1.0, 0.0, -3.0], [-9.0, 4.0, 0.0, 0.0]])
    assert aggregate(X, "sign-vote", faults=1).vector.tolist() == [1.0, -1.0, 0.0, 0.0]


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_rfa_is_smoothed_weiszfeld_from_zero(aggregate, steps):
    X = rows(7)
    X[:2] *= 50
    z = torch.zeros(5, dtype=torch.float64)
    for _ in range(steps):
        w = torch.tensor([1 / max(0.1, float((z - x).norm())) for x in X], dtype=torch.float64)
        z = (w[:, None] * X).sum(dim=0) / w.sum()
    result = aggregate(X, "rfa", faults=2, steps=steps)
    assert torch.allclose(result.vector, z, rtol=1e-9, atol=1e-9)
    assert result.plan.scores.tolist() == pytest.approx([float((z - x).norm()) for x in X])


@pytest.mark.parametrize("steps", [1, 4])
def test_centered_clipping_carries_its_center_over(steps):
    X = rows(8, 6, 2)
    X[0] *= 1e6
    v = torch.zeros(6, dtype=torch.float64)
    state = {}
    for _ in range(3):
        for _ in range(steps):
            v = v + sum((x - v) * min(1.0, 0.7 / float((x - v).norm())) for x in X) / 8
        before = {name: vector.clone() for name, vector in state.items()}
        kept = state
        result = aggregators.aggregate(
            X, "centered-clipping", (), faults=1, state=state, tau=0.7, steps=steps
        )
        assert torch.allclose(result.vector, v, rtol=1e-6, atol=1e-6)
        assert all(torch.equal(kept[name], before[name]) for name in kept), "the state handed in was changed"
        state = result.state
        assert list(state) == ["center"]
    assert torch.allclose(state["center"], v, rtol=1e-6, atol=1e-6)


def test_one_bad_row_does_not_poison_the_center():
    X = rows(8, 6, 2).float()
    X[0] = torch.nan
    result = aggregators.aggregate(X, "centered-clipping", (), faults=1)
    assert bool(result.state["center"].isfinite().all())
    X[0] = 1e30
    assert float(aggregators.aggregate(X, "centered-clipping", (), faults=1).state["center"].norm()) < 10


def foolsgold(histories):
    n = len(histories)
    cs = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            if i != j:
                cs[i][j] = float(torch.nn.functional.cosine_similarity(histories[i], histories[j], dim=0))
    most = [max(row) for row in cs]
    for i in range(n):
        for j in range(n):
            if most[i] < most[j] and most[j] > 0:
                cs[i][j] *= most[i] / most[j]
    a = [min(1.0, max(0.0, 1 - max(row))) for row in cs]
    a = [min(0.99, value / max(a)) for value in a]
    return [min(1.0, max(0.0, math.log(value / (1 - value)) + 0.5)) if value else 0.0 for value in a]


def test_foolsgold_weighs_histories():
    generator = torch.Generator().manual_seed(4)
    state, histories = {}, {}
    for number in range(3):
        names = ["a", "b", "c", "sybil1", "sybil2"][: 5 - (number == 1)]  # one is away in the second round
        X = torch.randn(len(names), 30, generator=generator, dtype=torch.float64)
        X[3:] = X[3] + 0.01 * torch.randn(len(names) - 3, 30, generator=generator, dtype=torch.float64)
        for name, x in zip(names, X, strict=True):
            histories[name] = histories.get(name, 0) + x
        result = aggregators.aggregate(X, "foolsgold", (), keys=names, state=state)
        wanted = torch.tensor(foolsgold([histories[name] for name in names]), dtype=torch.float64)
        assert result.scores.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
        assert torch.allclose(result.vector, (wanted / wanted.sum()) @ X, rtol=1e-6, atol=1e-6)
        state = {**state, **result.state}
    assert result.weights[3:].sum() < 0.1 < float(result.weights[:3].min())
    assert torch.allclose(state["history/a"], histories["a"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("noise", [0.0, 3e-7])  # as much as float32 rounds
def test_foolsgold_of_clones_is_zero_whatever_the_rounding(n, noise):
    generator = torch.Generator().manual_seed(n)
    for number in range(40):
        x = torch.randn(1 + 11 * number, generator=generator)
        X = x * (1 + noise * torch.randn(n, len(x), generator=generator))
        result = aggregators.aggregate(X, "foolsgold", ())
        assert not result.vector.any()
        assert not any(result.selected)
        assert "is like another's" in result.reason


def test_foolsgold_without_histories_is_finite():
    assert foolsgold_weights(torch.zeros(3, 3, dtype=torch.float64)).isfinite().all()


def flag_objective(Y, X, lam):
    total = sum(math.sqrt(max(0.0, 1 - float((Y.T @ x).square().sum() / x.square().sum()))) for x in X)
    n = len(X)
    for i in range(n):
        for j in range(n):
            g = X[i] - X[j]
            if i != j and lam:
                lost = max(0.0, 1 - float((Y.T @ g).square().sum() / g.square().sum()))
                total += lam / (n * (n - 1)) * math.sqrt(lost)
    return total


@pytest.mark.parametrize("lam", [0.0, 3.0])
@pytest.mark.parametrize("m", [1, 2, 4])
def test_flag_median_is_orthonormal_and_no_nearby_subspace_is_better(m, lam):
    X = rows(7, 9, 5)
    basis, _ = flag_median(X @ X.T, m, lam)
    Y = X.T @ basis
    assert torch.allclose(Y.T @ Y, torch.eye(m, dtype=torch.float64), atol=1e-8)
    reached = flag_objective(Y, X, lam)
    generator = torch.Generator().manual_seed(1)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(20):
            moved = torch.linalg.qr(Y + size * torch.randn(9, m, generator=generator, dtype=torch.float64)).Q
            assert flag_objective(moved, X, lam) >= reached - 1e-5


def test_flag_projects_the_mean(aggregate):
    X = rows(7, 9, 5)
    basis, _ = flag_median(X @ X.T, 4, 0.0)
    Y = X.T @ basis
    result = aggregate(X, "flag", faults=2)
    assert torch.allclose(result.vector, Y @ Y.T @ X.mean(dim=0), atol=1e-7)
    assert torch.allclose(aggregate(X, "flag", m=7).vector, X.mean(dim=0), atol=1e-7)  # all of the span
    same = aggregate(X[:1].repeat(5, 1), "flag", faults=1).vector
    assert torch.allclose(same, X[0], atol=1e-7)
    assert not aggregate(torch.zeros(3, 4), "flag", faults=1).vector.any()


class TestBucketing:
    def test_it_is_the_rule_over_means_of_random_groups(self):
        X = rows(7, 4, 1)
        pipeline = aggregators.build("median", pre=("bucketing:2",), faults=1)
        seen = set()
        for seed in range(5):
            result = aggregators.aggregate(X, "median", ("bucketing:2",), faults=1, seed=seed)
            plan = pipeline.plan(7, seed=seed)
            groups = {}
            for row, told in enumerate(plan.treatment):
                groups.setdefault(told.split("bucket ")[1][0], []).append(row)
            assert sorted(map(len, groups.values())) == [1, 2, 2, 2]
            means = torch.stack([X[group].mean(dim=0) for group in groups.values()])
            assert torch.allclose(result.vector, means.sort(dim=0).values[1:3].mean(dim=0))
            seen.add(tuple(sorted(map(tuple, groups.values()))))
        assert len(seen) == 5

    def test_scores_and_treatment_are_those_of_the_bucket(self):
        X = rows(8, 4, 1)
        plan = aggregators.Survey(aggregators.build("krum", pre=("bucketing:2",)), 8, 4)
        plan.add(0, X)
        made = plan.plan()
        assert sum(made.selected) == 2
        first, second = (row for row in range(8) if made.selected[row])
        assert made.scores[first] == made.scores[second] == made.scores.min()
        assert "in bucket" in made.treatment[first]
        assert "taken" in made.treatment[first]

    @pytest.mark.parametrize(("n", "f", "fine"), [(9, 2, True), (8, 2, False), (3, 0, True), (3, 1, False)])
    def test_f_stays_while_rows_become_fewer(self, n, f, fine):
        refusal = aggregators.build("median", pre=("bucketing:2",), faults=f).refuse(n)
        assert refusal == (None if fine else f"bucketing needs 2f < ceil(n/s): n is {n}, s is 2, f is {f}")
        assert aggregators.build("krum", pre=("bucketing:2",), faults=1).refuse(8).startswith("krum needs")

    def test_a_row_that_is_not_finite_spoils_nothing(self):
        X = rows(8, 4, 1)
        X[3] = torch.inf
        survey = aggregators.Survey(aggregators.build("krum", pre=("bucketing:2",), faults=1), 8, 4, seed=3)
        with pytest.raises(RuleError, match="krum needs"):
            survey.add(0, X)
            survey.plan()
        survey = aggregators.Survey(
            aggregators.build("geometric-median", pre=("bucketing:2",), faults=1), 8, 4
        )
        survey.add(0, X)
        out = torch.empty(4, dtype=torch.float64)
        survey.plan().reduce(X, out)
        assert bool(out.isfinite().all())

    def test_a_rule_that_knows_peers_does_not_stand_behind_it(self):
        for rule in ("foolsgold", "nna", "fltrust"):
            with pytest.raises(RuleError, match="bucketing makes one row of several"):
                aggregators.build(rule, pre=("bucketing:2",))


def test_static_clipping(aggregate):
    X = rows(5, 6, 3) * torch.tensor([[0.1], [1.0], [10.0], [100.0], [1e200]], dtype=torch.float64)
    clipped = torch.stack([x * min(1.0, 2.5 / float(x.norm())) for x in X[:4]])
    result = aggregate(X[:4], "mean", pre=("clipping:2.5",), faults=1)
    assert torch.allclose(result.vector, clipped.mean(dim=0))
    lost = aggregate(X, "median", pre=("clipping:2.5",), faults=1)  # its square overflows
    assert not lost.plan.selected[4]
    assert bool(lost.vector.isfinite().all())


@pytest.mark.parametrize(
    "spelling", ["bucketing:0", "bucketing:1.5", "clipping:0", "clipping:x", "clipping:-1"]
)
def test_wrong_values_behind_the_colon(spelling):
    with pytest.raises(RuleError):
        aggregators.build("median", pre=(spelling,))


@pytest.mark.parametrize("rule", ["meamed", "phocas", "sign-vote", "rfa", "centered-clipping", "flag"])
class TestAll:
    def test_bounds(self, rule):
        pipeline = aggregators.build(rule, faults=2)
        assert pipeline.refuse(5) is None
        assert pipeline.refuse(4) == f"{rule} needs n > 2f: n is 4, f is 2"

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30, -3e38])
    def test_bad_rows_leave_it_bounded(self, rule, bad):
        X = torch.randn(9, 40, generator=torch.Generator().manual_seed(6))
        X[0], X[5] = bad, -bad
        vector = aggregators.aggregate(X, rule, (), faults=2).vector
        limit = 10 * float(X[[1, 2, 3, 4, 6, 7, 8]].norm(dim=1).max())
        assert float(vector.norm()) <= limit

    def test_order_and_chunks_do_not_matter(self, rule, aggregate):
        X = torch.randn(9, 40_000, generator=torch.Generator().manual_seed(6))
        if rule == "centered-clipping":
            whole = aggregators.aggregate(X, rule, (), faults=2).vector
            turned = aggregators.aggregate(X.flip(0), rule, (), faults=2).vector
        else:
            whole = aggregate(X, rule, faults=2).vector
            turned = aggregate(X.flip(0), rule, faults=2, chunk=7_777).vector
        assert torch.allclose(whole, turned, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["meamed", "phocas"])
def test_kappa_is_that_of_the_order_statistics(aggregate, rule):
    """(f, kappa): |F - mean_S|^2 <= kappa/|S| sum_S |x_i - mean_S|^2, under outliers at any distance."""
    X = rows(11, 8, 7)
    honest = X[3:]
    spread = float((honest - honest.mean(dim=0)).square().sum()) / 8
    for distance in (0.1, 1.0, 3.0, 30.0, 1e6):
        X[:3] = honest.mean(dim=0) + distance
        error = float((aggregate(X, rule, faults=3).vector - honest.mean(dim=0)).square().sum())
        assert error <= 4 * (1 + 3 / 5) ** 2 * spread
