"""Partitions: nothing lost, nothing twice, and as skewed as asked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.errors import ConfigError
from muster.task.partition import Indices, by_class, dirichlet, iid

LABELS = np.repeat(np.arange(10), 100)


def check(parts: list[Indices], count: int, sites: int) -> None:
    assert len(parts) == sites
    assert all(len(part) > 0 and np.all(np.diff(part) > 0) for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=8, max_size=60),
    sites=st.integers(1, 8),
    seed=st.integers(0, 2**32),
    alpha=st.sampled_from([1e-3, 0.1, 1.0, 1000.0]),
)
def test_each_example_is_in_one_site_and_no_site_is_empty(
    labels: list[int], sites: int, seed: int, alpha: float
) -> None:
    check(iid(labels, sites, seed=seed), len(labels), sites)
    check(dirichlet(labels, sites, alpha=alpha, seed=seed), len(labels), sites)


@pytest.mark.parametrize("classes_per_site", [1, 2, 3, 10])
@pytest.mark.parametrize("sites", [10, 13])
def test_by_class_gives_each_site_exactly_so_many_classes(sites: int, classes_per_site: int) -> None:
    parts = by_class(LABELS, sites, classes_per_site=classes_per_site, seed=1)
    check(parts, len(LABELS), sites)
    held = [set(LABELS[part].tolist()) for part in parts]
    assert {len(classes) for classes in held} == {classes_per_site}
    holders = [sum(label in classes for classes in held) for label in range(10)]
    assert max(holders) - min(holders) <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: iid(LABELS, 7, seed=seed),
        lambda seed: dirichlet(LABELS, 7, alpha=0.5, seed=seed),
        lambda seed: by_class(LABELS, 7, classes_per_site=2, seed=seed),
    ],
)
def test_a_seed_decides_everything(make: Callable[[int], list[Indices]]) -> None:
    one, same, other = make(3), make(3), make(4)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_iid_sites_are_equal_in_size() -> None:
    sizes = [len(part) for part in iid(LABELS, 7)]
    assert max(sizes) - min(sizes) <= 1


def skew(parts: list[Indices]) -> float:
    """Mean total variation distance between a site's classes and everybody's."""
    shares = [np.bincount(LABELS[part], minlength=10) / len(part) for part in parts]
    return float(np.mean([np.abs(share - 0.1).sum() / 2 for share in shares]))


def test_lower_alpha_means_more_skew() -> None:
    skews = [skew(dirichlet(LABELS, 8, alpha=alpha, seed=5)) for alpha in (1000.0, 1.0, 0.05)]
    assert skews[0] < 0.1 < skews[1] < skews[2]
    assert skew(iid(LABELS, 8, seed=5)) < 0.2 < skews[2]


def test_the_smallest_site_has_what_is_asked() -> None:
    parts = dirichlet(LABELS, 20, alpha=0.02, seed=0, examples_min=25)
    check(parts, len(LABELS), 20)
    assert min(len(part) for part in parts) >= 25


@pytest.mark.parametrize(
    "make",
    [
        lambda: iid([0, 1], 3),
        lambda: iid([0, 1], 0),
        lambda: iid([[0, 1]], 1),
        lambda: iid([0.5, 1.0], 1),
        lambda: dirichlet(LABELS, 3, alpha=0),
        lambda: dirichlet(LABELS, 3, alpha=1, examples_min=334),
        lambda: by_class(LABELS, 4, classes_per_site=2),
        lambda: by_class(LABELS, 4, classes_per_site=11),
        lambda: by_class(LABELS, 4, classes_per_site=0),
        lambda: by_class([0, 1, 1, 1], 2, classes_per_site=2),
    ],
)
def test_what_cannot_be_cut_is_an_error(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.id == "partition.impossible"
