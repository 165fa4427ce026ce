"""A peer that attacks on purpose: a drill, set in its own configuration and never by a run.

It shows what a run's rule withstands. The attack poisons the data that the peer trains on, or forges its
update, or both. Alone, a peer sees no update but its own; an attack that lives on the spread among honest
updates sees several of those instead, each trained on a bootstrap of the peer's data, as Baruch et al. (A
little is enough, NeurIPS 2019) let corrupted workers estimate the mean and the spread from their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset, Subset, TensorDataset

import aggregators
from aggregators import Pipeline, RuleError, Source, attacks
from muster.errors import ConfigError
from muster.seeds import derive_seed
from peer.training.batches import collate, size_of

VIEWS = 4  # by default, of an attack that has to see more than its own update
VIEWS_MAX = 32  # each takes a training of its own, every round


class AttackSimulation:
    """Raises `ConfigError` `drill.invalid` on an unknown attack or a bad option.

    `attack` is {"name": ..., "options": {...}}. Options are the attack's own, and two of the drill's:
    `classes`, for an attack that poisons targets: how many there are, by default as many as this site's own
    targets show; and `views`: how many honest updates of its own the attack sees, by default one, or four
    where one is too few. `aggregation` is the run's table, for an attack that has to know what it attacks; it
    supposes that it attacks alone.
    """

    def __init__(self, attack: Mapping[str, Any], aggregation: Mapping[str, Any]) -> None:
        own = dict(attack.get("options") or {})
        self._classes: int | None = own.pop("classes", None)
        views = own.pop("views", None)
        try:
            self._attack = attacks.build(attack["name"], **own)
            self._pipeline = _pipeline(aggregation) if self._attack.needs_pipeline else None
        except RuleError as error:
            raise _invalid(str(error)) from error
        if views is None:
            views = 1 if self._attack.seen_min == 1 else max(VIEWS, self._attack.seen_min)
        if isinstance(views, bool) or not isinstance(views, int) or not 1 <= views <= VIEWS_MAX:
            raise _invalid(f"views must be an integer from 1 to {VIEWS_MAX}, and it is {views!r}")
        self.views: int = views

    @property
    def poisons(self) -> bool:
        return type(self._attack).poison is not attacks.Attack.poison

    def poison(self, data: Dataset[Any], seed: int) -> Dataset[Any]:
        """`data`, of (input, target) with class indices as targets, with what the attack makes of it. Held in
        memory whole."""
        inputs, targets = collate(data, torch.arange(size_of(data)))
        classes = self._classes or int(targets.max()) + 1
        try:
            return TensorDataset(*self._attack.poison(inputs, targets, classes, seed=seed))
        except RuleError as error:
            raise _invalid(str(error)) from error

    def plan(self, seen: Source, seed: int) -> attacks.Forgery:
        """Decides what to send, from the `views` honest updates, the peer's real one first."""
        try:
            return self._attack.plan(seen, pipeline=self._pipeline, seed=derive_seed(seed, "attack"))
        except RuleError as error:
            raise _invalid(f"{error}; it sees {self.views} updates of this peer's own (views)") from error


def bootstrap(data: Dataset[Any], seed: int) -> Dataset[Any]:
    """As many examples of `data` as it has, drawn with replacement: what another peer's data may have been."""
    size = size_of(data)
    generator = torch.Generator().manual_seed(seed)
    return Subset(data, torch.randint(size, (size,), generator=generator).tolist())


def _pipeline(aggregation: Mapping[str, Any]) -> Pipeline:
    """The run's, for one attacker at most among the few updates that this one sees."""
    return aggregators.build(
        aggregation["rule"],
        pre=aggregation["pre"],
        faults=1 if aggregation["faults"] else 0,  # this peer; a share of the cohort is one too
        options=aggregation["options"],
    )


def _invalid(sentence: str) -> ConfigError:
    return ConfigError("drill.invalid", sentence, fix="correct [peer.attack] in this peer's configuration")
