"""What an attack is, and how it comes to its forged update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from aggregators.options import RuleError, check_integer
from aggregators.pipeline import Pipeline

# The updates [h, d] that are seen, as column chunks [h, c] in their order; iterated as often as needed.
Columns: TypeAlias = Iterable[Tensor]

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
    """What an attacker knows in a round: the updates of `rows` peers, how many `copies` of its own update
    will stand behind them, and what it attacks, if it knows that."""

    columns: Columns
    rows: int
    copies: int
    pipeline: Pipeline | Aggregation | None
    seed: int
    memory: Memory

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Each chunk [h, c] with its first column."""
        start = 0
        for chunk in self.columns:
            if chunk.dim() != 2 or len(chunk) != self.rows:
                raise ValueError(f"a chunk of {self.rows} rows was due, not {tuple(chunk.shape)}")
            yield start, chunk
            start += chunk.shape[1]

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
        honest: Columns,
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
        if iter(honest) is honest:
            raise TypeError("the columns are read more than once: give a sequence of chunks, not an iterator")
        first = next(iter(honest), None)
        if first is None or first.dim() != 2 or len(first) < self.seen_min:
            seen = None if first is None else tuple(first.shape)
            raise RuleError(f"{self.name} has to see {self.seen_min} or more updates, not {seen}")
        if self.needs_pipeline and pipeline is None:
            raise RuleError(f"{self.name} has to know the pipeline that it attacks")
        return self._plan(
            View(
                columns=honest,
                rows=len(first),
                copies=copies,
                pipeline=pipeline,
                seed=seed,
                memory=memory or Memory(),
            )
        )

    @abstractmethod
    def _plan(self, view: View) -> Forgery: ...
