"""The interface of local algorithms, and how one is found by its name: peers run them, and the coordinator reads what
groups they declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from methods import MethodError, make
from methods.kinds import ALGORITHMS
from muster.errors import ConfigError
from muster.plugins import find

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from exchange.contribution import Contribution, RoundContext
    from exchange.groups import Group
    from muster.task.task import Task


class LocalAlgorithm(Protocol):
    """A frozen dataclass whose fields are the options that `[train.options]` may give it.

    `groups`, an attribute or a property that may depend on the options, has what it sends beside the model; without it,
    nothing.
    """

    name: ClassVar[str]
    # What it asks of `Task.loss`: a gradient, or the loss alone; None if training does not go through that, so that a
    # trial of it would tell nothing.
    asks_gradient: ClassVar[bool | None] = None

    @property
    def groups(self) -> Sequence[Group]:
        return ()

    def fit(self, task: Task, model: nn.Module, data: Dataset[Any], context: RoundContext) -> Contribution:
        """Trains `model`, which is on `context.device` and holds the round's base, in place.

        The result depends on nothing but the model, the data, and what the context has: asked again with the same, it
        gives the same bits on the same machine, unless it draws from `context.secret`.
        """
        ...


def build(name: str, options: Mapping[str, Any]) -> LocalAlgorithm:
    """Raises `ConfigError` `plugin.unknown`, `train.bad_options`."""
    try:
        algorithm: LocalAlgorithm = make(find(ALGORITHMS, name), name, options, ALGORITHMS)
    except MethodError as error:
        raise ConfigError(
            "train.bad_options",
            f"the local algorithm {name!r} refuses its options: {error}",
            fix="correct [train.options] in the run spec",
        ) from error
    return algorithm
