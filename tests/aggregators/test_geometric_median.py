"""The geometric median: a convex problem, so that a point with a zero subgradient is the answer."""

from __future__ import annotations

import re

import pytest
import torch


def least_subgradient(X, z):
    """The norm of the least subgradient of sum_i |z - x_i| at z, in float64 coordinates."""
    away = z - X
    lengths = away.norm(dim=1)
    upon = lengths < 1e-9 * X.norm(dim=1).clamp(min=1e-30)
    pull = (away[~upon] / lengths[~upon, None]).sum(dim=0).norm()
    return max(float(pull) - int(upon.sum()), 0.0)


def iterations(result):
    return int(re.search(r"after (\d+) iterations?", result.plan.reason)[1])


def objective(X, z):
    return float((z - X).norm(dim=1).sum())


@pytest.mark.parametrize("seed", range(12))
def test_the_subgradient_is_zero(aggregate, seed):
    generator = torch.Generator().manual_seed(seed)
    n, d = 3 + seed, 1 + seed % 6
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    result = aggregate(X, "geometric-median")
    assert least_subgradient(X, result.vector) < 1e-6 * n
    assert iterations(result) < 1_000
    assert float(result.plan.weights.sum()) == pytest.approx(1)
    assert result.plan.scores.tolist() == pytest.approx((result.vector - X).norm(dim=1).tolist(), abs=1e-6)


def test_float32_comes_close(aggregate):
    X = torch.randn(12, 3_000, generator=torch.Generator().manual_seed(1)) * 1e-3
    z = aggregate(X, "geometric-median", faults=3).vector.double()
    assert least_subgradient(X.double(), z) < 1e-3


def test_at_a_row(aggregate):
    # The centre of a cross is its median; so is a triangle's corner with an angle above 120 degrees.
    cross = torch.tensor([[0.0, 1], [1, 0], [0, 0], [0, -1], [-1, 0]]).double()
    assert torch.equal(aggregate(cross, "geometric-median").vector, cross[2])
    wide = torch.tensor([[-10.0, 0], [0, 1], [10, 0]]).double()
    result = aggregate(wide, "geometric-median")
    assert torch.equal(result.vector, wide[1])
    assert result.plan.selected == (False, True, False)
    narrow = torch.tensor([[-1.0, 0], [0, 3], [1, 0]]).double()  # every angle below 120: the Fermat point
    z = aggregate(narrow, "geometric-median").vector
    assert z.tolist() == pytest.approx([0, 1 / 3**0.5], abs=1e-7)


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_start_upon_a_row_that_is_not_the_median(aggregate, shift):
    # Row 0 is the mean, where the iteration starts. Eight rows on one side pull it by 8/sqrt(2.44), and six on the
    # other by 8/sqrt(4.34): more than one apart, so it is not the median.
    X = torch.zeros(15, 8, dtype=torch.float64)
    for k in range(4):
        X[1 + 2 * k : 3 + 2 * k, 0] = 1
        X[1 + 2 * k : 3 + 2 * k, 1 + k] = torch.tensor([1.2, -1.2]).double()
    for k in range(3):
        X[9 + 2 * k : 11 + 2 * k, 0] = -4 / 3
        X[9 + 2 * k : 11 + 2 * k, 5 + k] = torch.tensor([1.6, -1.6]).double()
    X += shift
    assert torch.allclose(X.mean(dim=0), X[0])
    result = aggregate(X, "geometric-median")
    assert float((result.vector - X[0]).norm()) > 0.01
    assert least_subgradient(X, result.vector) < 1e-5


@pytest.mark.parametrize(
    ("line", "low", "high"),
    [
        ([0.0, 1, 2, 3], 1, 2),
        ([0.0, 10], 0, 10),
        ([5.0, 1, 9], 5, 5),
        ([0.0, 0, 0, 8, 9], 0, 0),
        ([4.0], 4, 4),
    ],
)
def test_rows_on_a_line(aggregate, line, low, high):
    X = torch.tensor(line).double()[:, None]
    z = float(aggregate(X, "geometric-median").vector)
    assert low - 1e-6 <= z <= high + 1e-6
    assert objective(X, torch.tensor([z])) == pytest.approx(objective(X, torch.tensor([float(low)])))


def test_two_rows_share_alike(aggregate):
    assert aggregate(torch.tensor([[0.0], [10.0]]), "geometric-median").vector.tolist() == [5.0]


def test_duplicates_and_identical_rows(aggregate):
    row = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(aggregate(row.repeat(6, 1), "geometric-median").vector, row[0], rtol=1e-6)
    assert not aggregate(torch.zeros(4, 3), "geometric-median").vector.any()
    X = torch.cat([row.repeat(4, 1), torch.randn(3, 64)]).double()
    result = aggregate(X, "geometric-median", faults=3)
    assert torch.allclose(result.vector, row[0].double())
    assert result.plan.weights.tolist() == pytest.approx([0.25] * 4 + [0] * 3)


@pytest.mark.parametrize("distance", [1e3, 1e8, 1e14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_rows_do_not_take_the_digits_of_the_near(aggregate, distance, dtype):
    generator = torch.Generator().manual_seed(7)
    honest = torch.randn(11, 20, generator=generator, dtype=torch.float64)
    direction = torch.randn(20, generator=generator, dtype=torch.float64)
    direction /= direction.norm()
    X = torch.cat([honest, (distance * direction).repeat(9, 1)])
    result = aggregate(X.to(dtype), "geometric-median", faults=9)
    # From so far away only the direction of a row counts, and it is the same for each distance.
    assert least_subgradient(X, result.vector.double()) < 0.02
    assert iterations(result) < 100  # from the mean of all rows, 1e14 away, it would take hundreds


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_a_row_without_a_finite_norm_has_no_say(aggregate, bad):
    X = torch.randn(8, 30, generator=torch.Generator().manual_seed(4))
    X[3] = bad
    rest = torch.cat([X[:3], X[4:]])
    result = aggregate(X, "geometric-median", faults=1)
    assert torch.allclose(result.vector, aggregate(rest, "geometric-median", faults=1).vector, atol=1e-6)
    assert result.plan.selected == tuple(i != 3 for i in range(8))


@pytest.mark.parametrize("slant", [0.0, -1e-4, -1e-3])
def test_that_it_has_not_converged_is_said_with_what_is_left(aggregate, slant):
    angle = torch.tensor(
        2 * torch.pi / 3 + slant, dtype=torch.float64
    )  # at 120 degrees the median is the corner
    X = torch.zeros(3, 2, dtype=torch.float64)
    X[1, 0], X[2, 0], X[2, 1] = 1, angle.cos(), angle.sin()
    result = aggregate(X, "geometric-median", faults=1)
    assert iterations(result) == 1_000
    told = re.search(r"not converged: a gradient of (\S+) an update is left$", result.plan.reason)
    assert float(told[1]) == pytest.approx(least_subgradient(X, result.vector) / 3, rel=0.05)
    assert "converged" not in aggregate(X + X.flip(0), "geometric-median", faults=1).plan.reason
