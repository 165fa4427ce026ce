"""The interface of a server optimizer, chunk by chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from methods.kinds import SERVER_OPTIMIZERS
from muster import plugins

if TYPE_CHECKING:
    from torch import Tensor

    from muster.spec.model import ServerTable


@dataclass(frozen=True, kw_only=True)
class ServerOptimizer(ABC):
    """Moves one chunk of the model by one chunk of the aggregate.

    Every rule here works coordinate by coordinate, so a model of any size passes through in chunks of at most 2^18
    and only a few of them are in memory. `state_names` are float32 vectors of the model's size that start at zero,
    are written with each model version and read with the next.

    A frozen keyword-only dataclass whose fields are its options. Of the keys of `[server]` (lr, momentum, beta1, beta2,
    tau) it is given those that it has a field for; the rest is in `[server.options]`. `version` is that of the model
    that the round began with, `warming_up` whether the round is one of the spec's compression.warm_up_rounds.
    """

    state_names: ClassVar[tuple[str, ...]] = ()
    knobs: ClassVar[Mapping[str, str]] = {
        "lr": "step size of the server, above 0",
        "momentum": "share of the momentum that is kept, from 0 to below 1",
        "beta1": "share of the first moment that is kept, from 0 to below 1",
        "beta2": "share of the second moment that is kept, from 0 to below 1",
        "tau": "added to the root of the second moment, above 0: larger is steadier and less adaptive",
    }
    has_momentum: ClassVar[bool] = True  # updates of earlier rounds go on moving the model
    only_scales: ClassVar[bool] = False  # the step is lr times the aggregate and nothing else
    learns_scale: ClassVar[bool] = (
        False  # after the warm-up the step is the aggregate times a vector that stays
    )

    version: int = 0
    warming_up: bool = False

    @abstractmethod
    def step(self, base: Tensor, delta: Tensor, state: Mapping[str, Tensor], out: Tensor) -> Tensor | None:
        """Writes the new model chunk [c] into `out`. Where the step is the aggregate times a vector [c], and no more,
        gives that vector.

        `delta` [c] is the aggregate (trained minus base: it is *added*, a step of +1 is plain averaging) and may be
        overwritten; `state` is updated in place; `base` is only read.
        """


def find(table: ServerTable) -> type[ServerOptimizer]:
    """The class that the table names. Raises `ConfigError` if nothing provides it."""
    found: type[ServerOptimizer] = plugins.find(SERVER_OPTIMIZERS, table.optimizer)
    return found


def build(table: ServerTable, *, version: int = 0, warming_up: bool = False) -> ServerOptimizer:
    """The optimizer that the run spec's `[server]` table names, for a round that begins with model `version`.

    Raises `ConfigError` for an optimizer that nothing provides, or that refuses its options.
    """
    values = plugins.values(SERVER_OPTIMIZERS, table.optimizer, table)
    made: ServerOptimizer = plugins.make(
        SERVER_OPTIMIZERS, table.optimizer, values, version=version, warming_up=warming_up
    )
    return made
