"""The interface of a server optimizer, chunk by chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from muster import plugins

if TYPE_CHECKING:
    from torch import Tensor

    from muster.spec.model import ServerTable


class ServerOptimizer(ABC):
    """Moves one chunk of the model by one chunk of the aggregate.

    Every rule here works coordinate by coordinate, so a model of any size passes through in chunks of at most 2^18
    and only a few of them are in memory. `state_names` are float32 vectors of the model's size that start at zero,
    are written with each model version and read with the next.
    """

    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, table: ServerTable) -> None:
        self.table = table
        self.warming_up = False  # whether the round is one of the spec's compression.warm_up_rounds
        self.version = 0  # of the model that the round began with

    @abstractmethod
    def step(self, base: Tensor, delta: Tensor, state: Mapping[str, Tensor], out: Tensor) -> Tensor | None:
        """Writes the new model chunk [c] into `out`. Where the step is the aggregate times a vector [c], and no more,
        gives that vector.

        `delta` [c] is the aggregate (trained minus base: it is *added*, a step of +1 is plain averaging) and may be
        overwritten; `state` is updated in place; `base` is only read.
        """


def build(table: ServerTable) -> ServerOptimizer:
    """The optimizer that the run spec's `[server]` table names."""
    found: type[ServerOptimizer] = plugins.find("muster.server_optimizers", table.optimizer)
    return found(table)
