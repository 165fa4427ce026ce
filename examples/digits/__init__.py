"""Handwritten digits: scikit-learn's 1797 images of 8 x 8 pixels, shared out over the sites.

Two tasks that differ in the model only: `Digits` (a multilayer perceptron, 4 810 parameters; `hidden = [512, 512]`
in the run's `[task_options]` makes a wider one) and `DigitsCNN` (two convolutions, 9 930 parameters). A fifth of the
images, the same on every machine, is the hold-out; the run's `[task_options]` divide the rest:

    partition = "iid"        every site sees every digit, in equal parts (the default)
    partition = "dirichlet"  skewed: the smaller `alpha` (0.5), the fewer digits a site sees
    partition = "by-class"   each site sees `classes` (3) of the digits only

A site's own policy file says which part is its own: `data = { index = 0, count = 5 }`.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from muster import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from torch.utils.data import Dataset

    from muster import Site

SPLIT_SEED = 2026  # of the hold-out, so that no run ever trains on it
TEST_SHARE = 0.2


@cache
def _load() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Images [n, 1, 8, 8] in 0 to 1, labels [n], indices of the training part and of the hold-out."""
    import numpy as np
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    images = (np.asarray(pixels) / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = np.asarray(digits).astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    held_out = round(len(labels) * TEST_SHARE)
    return images, labels, np.sort(order[held_out:]), np.sort(order[:held_out])


def _own_part(site: Site, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places in `labels` that are this site's, by the run's partition and the site's own index."""
    from muster.task import partition

    index, count = int(site.data["index"]), int(site.data["count"])
    if not 0 <= index < count:
        raise ValueError(f"site data: index must be 0 to count - 1; index is {index}, count is {count}")
    match site.options.get("partition", "iid"):
        case "iid":
            parts = partition.iid(labels, count, seed=site.seed)
        case "dirichlet":
            alpha = float(site.options.get("alpha", 0.5))
            parts = partition.dirichlet(labels, count, alpha=alpha, seed=site.seed)
        case "by-class":
            classes = int(site.options.get("classes", 3))
            parts = partition.by_class(labels, count, classes_per_site=classes, seed=site.seed)
        case other:
            raise ValueError(f"task_options.partition: {other!r} is none of iid, dirichlet, by-class")
    return parts[index]


class Digits(Task):
    """Ten classes; a multilayer perceptron, 64-64-10 unless `hidden` says otherwise."""

    def model(self) -> nn.Module:
        from torch import nn

        widths = [64, *map(int, self.options.get("hidden", [64]))]
        hidden = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], 10))

    def train_data(self, site: Site) -> Dataset[Any]:
        _, labels, training, _ = _load()
        return self._dataset(training[_own_part(site, labels[training])])

    def test_data(self, site: Site) -> Dataset[Any]:
        return self._dataset(_load()[3])

    def _dataset(self, chosen: NDArray[np.int64]) -> Dataset[Any]:
        import torch
        from torch.utils.data import TensorDataset

        images, labels, _, _ = _load()
        return TensorDataset(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]))


class DigitsCNN(Digits):
    """The same data; two convolutions, one pooling."""

    def model(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )
