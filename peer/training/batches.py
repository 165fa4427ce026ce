"""Batches of a map-style dataset, in an order that a seed decides, collated without worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from muster.errors import ConfigError


def size_of(data: Dataset[Any]) -> int:
    """The number of examples. Raises `ConfigError` `task.no_data`, `task.not_map_style`."""
    try:
        size = len(cast(Any, data))
    except (TypeError, NotImplementedError) as error:
        raise ConfigError(
            "task.not_map_style",
            f"the task's dataset {type(data).__name__} has no length",
            cause="local training draws its batches by index",
            fix="return a dataset with __len__ and __getitem__ from train_data",
        ) from error
    if size == 0:
        raise ConfigError(
            "task.no_data",
            "this site has no examples to train on",
            fix="check the data that the peer's policy hands to the task",
        )
    return size


class Batches:
    """Endless passes over `data`, each a new permutation drawn from `seed` by a generator of its own.

    Nothing is dropped: the last batch of a pass may be smaller. Only a last batch of one joins the batch
    before it, since batch normalisation cannot learn from a single example.
    """

    def __init__(self, data: Dataset[Any], batch_size: int, seed: int) -> None:
        self._data = data
        self.examples = size_of(data)
        self._generator = torch.Generator().manual_seed(seed)
        self._bounds = _bounds(self.examples, batch_size)

    @property
    def per_pass(self) -> int:
        return len(self._bounds)

    def one_pass(self) -> Iterator[tuple[Any, int]]:
        """Each batch with its number of examples."""
        order = torch.randperm(self.examples, generator=self._generator, device="cpu")
        for start, stop in self._bounds:
            yield collate(self._data, order[start:stop]), stop - start


def _bounds(size: int, batch_size: int) -> list[tuple[int, int]]:
    starts = list(range(0, size, batch_size))
    if batch_size > 1 and len(starts) > 1 and size - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], size], strict=True))


def collate(data: Dataset[Any], indices: Tensor) -> Any:
    """The examples at `indices` as one batch; datasets of whole tensors are indexed at once."""
    if isinstance(data, TensorDataset):
        return tuple(tensor[indices] for tensor in data.tensors)
    if isinstance(data, Subset):
        return collate(data.dataset, torch.as_tensor(data.indices)[indices])
    return default_collate([data[i] for i in indices.tolist()])
