"""A peer that attacks on purpose: a drill, set in its own configuration and never by a run.

It shows what a run's rule withstands. The attack forges the update from the peer's own honest one, or poisons
the targets that it trains on, or both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from aggregators import RuleError, attacks
from muster.errors import ConfigError
from peer.training.batches import collate, size_of


class Drill:
    """Raises `ConfigError` `drill.invalid` on an unknown attack, a bad option, or an attack that takes many.

    Options are the attack's own, and `classes` for one that poisons targets: how many classes there are; by
    default as many as this site's own targets show.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        own = dict(options)
        self._classes: int | None = own.pop("classes", None)
        try:
            self._attack = attacks.build(name, **own)
        except RuleError as error:
            raise _invalid(str(error)) from error
        if self._attack.seen_min > 1:
            raise _invalid(f"{name} has to see {self._attack.seen_min} updates and a peer sees only its own")

    @property
    def poisons(self) -> bool:
        return type(self._attack).poison is not attacks.Attack.poison

    def forge(self, delta: Tensor) -> Tensor:
        """What is sent instead of `delta` [c]."""
        return attacks.forge(self._attack, delta.unsqueeze(0))

    def poison(self, data: Dataset[Any]) -> Dataset[Any]:
        """`data`, of (input, target) with class indices as targets, with false targets. Held in memory
        whole."""
        inputs, targets = collate(data, torch.arange(size_of(data)))
        classes = self._classes or int(targets.max()) + 1
        try:
            return TensorDataset(*self._attack.poison(inputs, targets, classes))
        except RuleError as error:
            raise _invalid(str(error)) from error


def _invalid(sentence: str) -> ConfigError:
    return ConfigError("drill.invalid", sentence, fix="correct [peer.attack] in this peer's configuration")
