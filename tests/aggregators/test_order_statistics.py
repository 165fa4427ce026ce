"""The sorting network, its pruning, and the two rules that are made of it."""

from __future__ import annotations

import itertools

import pytest
import torch

from aggregators.core.order_statistics import MiddleMean
from aggregators.kernels.network import comparators, compile_program


@pytest.mark.parametrize("n", range(1, 12))
def test_network_sorts_everything(n):
    # By the zero-one principle a network that sorts every sequence of 0 and 1 sorts every sequence.
    network = list(comparators(n))
    for bits in itertools.product((0, 1), repeat=n):
        values = list(bits)
        for i, j in network:
            assert 0 <= i < j < n
            if values[i] > values[j]:
                values[i], values[j] = values[j], values[i]
        assert values == sorted(values)


@pytest.mark.parametrize("n", [16, 20, 33, 64])
def test_network_is_batchers(n):
    # Batcher's count for a power of two: (p^2 - p + 4) 2^(p - 2) - 1 comparators for n = 2^p.
    powers = {16: 63, 64: 543}
    count = len(list(comparators(n)))
    assert count == powers.get(n, count)
    values = torch.randn(n, 200, generator=torch.Generator().manual_seed(n))
    rows = list(values.unbind(0))
    for i, j in comparators(n):
        rows[i], rows[j] = torch.minimum(rows[i], rows[j]), torch.maximum(rows[i], rows[j])
    assert torch.equal(torch.stack(rows), values.sort(dim=0).values)


@pytest.mark.parametrize("n", range(1, 9))
def test_pruned_program_gives_every_range_of_ranks(n):
    # All orders of n values stand side by side as columns.
    columns = torch.tensor(list(itertools.permutations(range(n)))[:5_040], dtype=torch.float32).T.contiguous()
    for low, high in itertools.combinations(range(n + 1), 2):
        reducer = MiddleMean(n, low, high)
        before = columns.clone()
        out = torch.empty(columns.shape[1])
        reducer.reduce(columns, out)
        assert torch.equal(columns, before)
        assert torch.allclose(out, torch.full_like(out, sum(range(low, high)) / (high - low)))


def test_pruning_leaves_work_out():
    full, trimmed = compile_program(20, 0, 20), compile_program(20, 4, 16)
    assert len(full.steps) == 2 * len(list(comparators(20)))
    assert len(trimmed.steps) < 0.95 * len(full.steps)
    assert trimmed.scratch_rows <= 21
    assert all(target >= 20 for _, _, _, target in trimmed.steps)  # inputs are read, never written


def median(X):
    """Of float64 [n, d] by sorting in Python."""
    ordered = [sorted(column) for column in X.T.tolist()]
    n = len(X)
    return torch.tensor([(o[(n - 1) // 2] + o[n // 2]) / 2 for o in ordered], dtype=torch.float64)


def trimmed_mean(X, f):
    ordered = [sorted(column)[f : len(X) - f] for column in X.T.tolist()]
    return torch.tensor([sum(o) / len(o) for o in ordered], dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 11, 20, 37])
@pytest.mark.parametrize("values", ["random", "ties", "identical"])
def test_median_and_trimmed_mean_by_definition(aggregate, n, values):
    generator = torch.Generator().manual_seed(n)
    X = {
        "random": torch.randn(n, 300, generator=generator),
        "ties": torch.randint(-2, 3, (n, 300), generator=generator).float(),
        "identical": torch.randn(1, 300, generator=generator).repeat(n, 1),
    }[values]
    wide = X.double()
    assert torch.allclose(aggregate(X, "median").vector.double(), median(wide), rtol=1e-6, atol=1e-7)
    assert torch.equal(aggregate(wide, "median").vector, median(wide))
    for faults in {0, 1, n // 4, (n - 1) // 2}:
        if n > 2 * faults:
            result = aggregate(X, "trimmed-mean", faults=faults)
            assert torch.allclose(result.vector.double(), trimmed_mean(wide, faults), rtol=1e-5, atol=1e-6)


def test_order_of_rows_does_not_matter_to_the_bit(aggregate):
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(13, 5_000, generator=generator)
    shuffled = X[torch.randperm(13, generator=generator)]
    for rule, faults in (("median", 0), ("trimmed-mean", 3)):
        one, other = (aggregate(rows, rule, faults=faults).vector for rows in (X, shuffled))
        assert torch.equal(one, other)


def test_infinities_are_trimmed_and_nan_stays_in_its_column(aggregate):
    X = torch.arange(35.0).reshape(7, 5)
    X[2] = torch.inf
    X[3] = -torch.inf
    X[5, 0] = 1e30
    for rule in ("median", "trimmed-mean"):
        out = aggregate(X, rule, faults=2).vector
        assert bool(((out >= 0) & (out <= 34)).all())
    X[0, 4] = torch.nan
    for rule in ("median", "trimmed-mean"):
        assert aggregate(X, rule, faults=2).vector.isnan().tolist() == [False] * 4 + [True]
