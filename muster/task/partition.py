"""One labelled data set, cut into sites: for examples, simulations and tests.

Every function takes labels [n] (integers) and gives one sorted array of example indices per site; each
example is in exactly one site and no site is empty. Equal arguments give equal partitions on every machine,
so each peer can compute its own part by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muster.errors import ConfigError

Indices = NDArray[np.int64]


def iid(labels: ArrayLike, sites: int, *, seed: int = 0) -> list[Indices]:
    """Sites of equal size (within one example), drawn without looking at the labels."""
    found = _labels(labels, sites)
    order = np.random.default_rng(seed).permutation(len(found))
    return [np.sort(part) for part in np.array_split(order, sites)]


def dirichlet(
    labels: ArrayLike, sites: int, *, alpha: float, seed: int = 0, examples_min: int = 1
) -> list[Indices]:
    """Each class is shared out by proportions drawn from Dir(alpha, ..., alpha) over the sites.

    Source: Hsu, Qi and Brown 2019, arXiv:1909.06335, with the proportions drawn for each class. Raising
    `alpha` makes sites alike (100 is nearly IID), lowering it gives each class to few sites (0.1 is harsh).
    A site left with fewer than `examples_min` is filled up from the largest one, so that no draw has to be
    thrown away.
    """
    found = _labels(labels, sites * examples_min)
    if not alpha > 0:
        raise ConfigError("partition.impossible", f"dirichlet needs alpha > 0, not {alpha}")
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(sites)]
    for label in np.unique(found):
        members = rng.permutation(np.flatnonzero(found == label))
        shares = rng.dirichlet(np.full(sites, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for site, piece in enumerate(np.split(members, cuts)):
            parts[site].extend(piece.tolist())
    sizes = np.array([len(part) for part in parts])
    while sizes.min() < examples_min:
        poor, rich = int(sizes.argmin()), int(sizes.argmax())
        parts[poor].append(parts[rich].pop())
        sizes[poor] += 1
        sizes[rich] -= 1
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def by_class(labels: ArrayLike, sites: int, *, classes_per_site: int = 2, seed: int = 0) -> list[Indices]:
    """Each site holds exactly so many classes; a class is split evenly over the sites that hold it.

    Source: the quantity-based label skew of Li et al. 2022, arXiv:2102.02079. Classes are dealt in turn
    from a shuffled deck, so that each is held by as many sites as any other, give or take one.
    """
    found = _labels(labels, sites)
    classes = np.unique(found)
    if not 1 <= classes_per_site <= len(classes) or sites * classes_per_site < len(classes):
        raise ConfigError(
            "partition.impossible",
            f"{sites} sites of {classes_per_site} classes cannot share {len(classes)} classes",
            cause="every class needs a site, and no site can hold a class twice",
            fix=f"classes_per_site from {-(-len(classes) // sites)} to {len(classes)}",
        )
    rng = np.random.default_rng(seed)
    deck = rng.permutation(classes)
    hands = np.take(deck, np.arange(sites * classes_per_site), mode="wrap").reshape(sites, classes_per_site)
    parts: list[list[int]] = [[] for _ in range(sites)]
    for label in classes:
        holders = np.flatnonzero((hands == label).any(axis=1))
        members = rng.permutation(np.flatnonzero(found == label))
        if len(members) < len(holders):
            raise ConfigError(
                "partition.impossible",
                f"class {label} has {len(members)} examples for {len(holders)} sites",
                fix="fewer sites, or fewer classes_per_site",
            )
        for site, piece in zip(holders, np.array_split(members, len(holders)), strict=True):
            parts[site].extend(piece.tolist())
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def _labels(labels: ArrayLike, examples_needed: int) -> NDArray[np.int64]:
    found = np.asarray(labels)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise ConfigError(
            "partition.impossible",
            f"labels must be integers in one dimension, not {found.dtype} of shape {found.shape}",
        )
    if examples_needed < 1 or len(found) < examples_needed:
        raise ConfigError(
            "partition.impossible",
            f"{len(found)} examples cannot fill sites that need {examples_needed} together",
        )
    return found.astype(np.int64)
