"""What an attack is, and how it comes to its forged update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from aggregators.core.options import RuleError, check_integer
from aggregators.core.pipeline import Pipeline
from aggregators.core.sources import Source

# From all updates [n, d] to their aggregate [d]: what is attacked where a `Pipeline` alone does not tell it,
# such as a rule with kept vectors or a trusted row.
Aggregation: TypeAlias = Callable[[Tensor], Tensor]


class Forgery(ABC):
    """A decided attack: writes the update to send."""

    @abstractmethod
    def forge(self, honest: Tensor, out: Tensor, start: int = 0) -> None:
        """Writes to `out` [c] the columns from `start` on, of which `honest` [h, c] are the updates seen.

        Chunks may come in any order and width; `honest` is left as it is.
        """


@dataclass(kw_only=True)
class Memory:
    """What an attacker keeps from round to round: one for each run that is attacked."""

    rounds: int = 0
    vector: Tensor | None = None  # [d] float32


@dataclass(frozen=True, kw_only=True)
class View:
    """What an attacker knows in a round: the updates of some peers, how many `copies` of its own
    update will stand behind them, and what it attacks, if it knows that."""

    source: Source
    copies: int
    pipeline: Pipeline | Aggregation | None
    seed: int
    memory: Memory

    @property
    def rows(self) -> int:
        """h."""
        return self.source.n

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """(first column, X [h, c]); X may be used again for the next chunk."""
        return self.source.chunks()

    @property
    def mean(self) -> Tensor:
        """[h] float64: the shares of the updates seen in their mean."""
        return torch.full((self.rows,), 1 / self.rows, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Falsifies the training data (`poison`), the update (`plan`), or both; each does nothing unless
    overridden: an attack that only poisons sends what the training gives.

    All faulty peers of a round send the same update. `seen_min` is how many updates an attacker has to see. A
    peer that attacks alone sees its own; where it needs more it trains on several resamplings of its data.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    seen_min: ClassVar[int] = 1
    knobs: ClassVar[Mapping[str, str]] = {}  # as a rule's
    needs_pipeline: ClassVar[bool] = False  # whether it has to know what it attacks

    def poison(
        self, inputs: Tensor, targets: Tensor, classes: int, *, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """What to train on in place of `inputs` [N, ...] and the class indices `targets`, which are left as
        they are."""
        del classes, seed
        return inputs, targets

    def plan(
        self,
        honest: Source,
        *,
        copies: int = 1,
        pipeline: Pipeline | Aggregation | None = None,
        seed: int = 0,
        memory: Memory | None = None,
    ) -> Forgery:
        """Decides what to send, from the updates seen: all honest ones, or as many as the attacker has.

        Raises `RuleError` where they are fewer than `seen_min`, where `pipeline` has to be known and is not,
        and where it refuses so many updates.
        """
        check_integer(self.name, "copies", copies, minimum=1)
        if honest.n < self.seen_min:
            raise RuleError(f"{self.name} has to see {self.seen_min} or more updates, and it sees {honest.n}")
        if self.needs_pipeline and pipeline is None:
            raise RuleError(f"{self.name} has to know the pipeline that it attacks")
        return self._plan(
            View(source=honest, copies=copies, pipeline=pipeline, seed=seed, memory=memory or Memory())
        )

    @abstractmethod
    def _plan(self, view: View) -> Forgery: ...
