"""What a plug-in is: a `PreRule` mixes the updates, a `Rule` makes one vector of them.

A plug-in is a frozen keyword-only dataclass. Its fields are its options, but for `faults`, the declared
number f of faulty updates, which the pipeline gives to all alike. It never sees the updates while it decides,
only their geometry (how many, and their inner products), so deciding costs nothing in the size of the model;
then the same mixing is swept over the columns, chunk by chunk.

Rows stand in the order of their peers' ids, and every tie goes to the lowest row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from aggregators.core.options import RuleError, check_integer
from aggregators.kernels import Mixing

LONGER = 10.0  # times as long as others is more than what data and chance make of an update
TOO_LONG = f"left out: it is more than {LONGER:g} times as long as the median update"


class Needs(Flag):
    """What a plug-in asks of its surroundings."""

    NOTHING = 0
    GRAM = auto()  # the inner products of all rows, thus one more pass over the data
    WEIGHTS = auto()  # the caller's weight of each row, such as example counts
    HONESTY = auto()  # no faulty row: with f > 0 it can only stand behind a pre-rule that bounds norms
    SAMPLES = auto()  # the inner products of all rows over some coordinates, drawn from the seed
    SEED = auto()  # randomness, all of it from the seed
    TRUSTED = auto()  # one row that the caller vouches for: a server's root update, a peer's own
    STATE = auto()  # vectors that outlive a round
    TEST_SET = auto()  # examples of its own to judge by
    KEYS = auto()  # to know whose update a row is, from round to round


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What may be known of n rows without reading them again.

    `inner` is the Gram matrix [n + s, n + s] float64 of the n rows and the s vectors that the rule keeps from
    round to round, symmetric, with zero in the rows and columns that are not finite; None unless asked for.
    `finite` [n] bool tells the rows that have a finite norm. `weights` [n] float64 sum to 1. `samples`
    [draws, n, n] float64 are Gram matrices over a few coordinates each, as the rule's `sampling` asks.
    `trusted` is the row that the caller vouches for, and `seed` all there is of randomness.
    """

    n: int
    finite: Tensor
    weights: Tensor
    inner: Tensor | None = None
    samples: Tensor | None = None
    trusted: int | None = None
    seed: int = 0

    @property
    def extended(self) -> Tensor:
        """[n + s, n + s]: the inner products of the rows and, behind them, the kept vectors."""
        if self.inner is None:
            raise RuntimeError("this geometry was made without a Gram matrix: declare Needs.GRAM")
        return self.inner

    @property
    def gram(self) -> Tensor:
        """[n, n]: the inner products of the rows alone."""
        return self.extended[: self.n, : self.n]

    @cached_property
    def norms(self) -> Tensor:
        """[n] float64, infinite where the row is not finite."""
        return self.gram.diagonal().clamp(min=0).sqrt().masked_fill(~self.finite, torch.inf)

    @cached_property
    def distances(self) -> Tensor:
        """Squared distances [n, n] float64, zero on the diagonal, and infinite to a row that is not finite.

        Rows are never centred first: one far row would take the digits of all the others.
        """
        squares = self.gram.diagonal()
        between = (squares[:, None] + squares[None, :] - 2 * self.gram).clamp(min=0)
        lost = ~self.finite
        between.masked_fill_(lost[:, None] | lost[None, :], torch.inf)
        return between.fill_diagonal_(0.0)

    @property
    def excessive(self) -> Tensor:
        """[n] bool: the rows more than `LONGER` times as long as the median one, the longer of two in the middle. For
        rules that bound no norm themselves."""
        median = self.norms.sort().values[self.n // 2]
        return (self.norms > LONGER * median) & (median > 0)


class ColumnReducer(Protocol):
    """Makes one row of m rows, column by column; holds no tensors, so that plans may share it."""

    def reduce(self, rows: Tensor, out: Tensor, mixing: Mixing | None) -> None:
        """From `rows` [m, c] to `out` [c], leaving `rows` as they are.

        With a `mixing` W [m, n] the rows are those of W @ `rows` [n, c].
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What a rule decided about n rows.

    `matrix` W is [m, n] float64, or [m, n + s] of a rule that keeps s vectors, which then stand behind the
    rows (None: the identity). Without a `reducer`, m is 1 and W @ X is the result; with one, the result is
    `reducer` of the m rows of W @ X. `state` [s, n + s] float64 times the same rows makes the vectors to
    keep. `scores` [n] float64 mean what the rule's `score` says. `treatment` has a clause for each row, and
    `reason` says in one clause what was done.
    """

    matrix: Tensor | None = None
    reducer: ColumnReducer | None = None
    state: Tensor | None = None
    scores: Tensor
    treatment: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class PreMix:
    """What a pre-rule decided: the rows of W @ X stand for the updates from now on, whatever the rule is.

    `matrix` W is [m, n] float64, with zero in the column of every row that is not finite. `stands_for` [n]
    int64 tells which of the m rows stands for an update (None: m is n, and row i for update i). `treatment`
    has a clause for each of the n rows.
    """

    matrix: Tensor
    treatment: tuple[str, ...]
    reason: str
    stands_for: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class _Plugin(ABC):
    name: ClassVar[str]
    source: ClassVar[str]  # where it was published
    breakdown: ClassVar[str]  # which share of faulty rows it bears, as an inequality
    needs: ClassVar[Needs]
    counts_faults: ClassVar[bool] = (
        False  # built on f: with f = 0 it lets one liar through, so f has to be said
    )
    # Of each option: what it is, its unit and range, and what raising it does.
    knobs: ClassVar[Mapping[str, str]] = {}

    faults: int = 0

    def __post_init__(self) -> None:
        check_integer(self.name, "faults", self.faults, minimum=0)

    def refuse(self, n: int) -> str | None:
        """One sentence if n rows, `faults` of them faulty, are beyond it, else None. The default: n > 2f."""
        if n > 2 * self.faults:
            return None
        return f"{self.name} needs n > 2f: n is {n}, f is {self.faults}"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """So many draws of so many coordinates each, without replacement, at random from the seed."""

    draws: int
    coordinates: int


@dataclass(frozen=True, kw_only=True)
class Rule(_Plugin):
    """Makes one vector of n updates. Subclasses decide with `mix`, and may reduce the columns themselves."""

    score: ClassVar[str]  # what its score of an update means, with its unit
    has_length: ClassVar[bool] = True  # False: its result tells directions, in a unit of its own

    @property
    def sampling(self) -> Sampling | None:
        """What a rule with `Needs.SAMPLES` wants to know of some coordinates."""
        return None

    def state_names(self, keys: Sequence[str]) -> tuple[str, ...]:
        """The vectors [d] that a rule with `Needs.STATE` keeps, zeros at first; `keys` name the updates."""
        del keys
        return ()

    @abstractmethod
    def mix(self, geometry: Geometry) -> Mix:
        """Called only where `refuse(geometry.n)` is None and at most `faults` rows are not finite."""


@dataclass(frozen=True, kw_only=True)
class PreRule(_Plugin):
    """Changes the rows that a rule sees, as a matrix on the updates."""

    keeps_rows: ClassVar[bool] = True  # whether row i still stands for update i alone
    bounds_norms: ClassVar[bool] = False  # whether no faulty row stays much longer than the honest ones

    def rows(self, n: int) -> int:
        """How many rows n rows become."""
        return n

    @abstractmethod
    def mix(self, geometry: Geometry) -> PreMix:
        """Called only where `refuse(geometry.n)` is None and at most `faults` rows are not finite."""


__all__ = ["ColumnReducer", "Geometry", "Mix", "Needs", "PreMix", "PreRule", "Rule", "RuleError", "Sampling"]
