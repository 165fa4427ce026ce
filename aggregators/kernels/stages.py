"""What can be made of a column of m values: the definitions that machine code and torch both follow.

Each gives the same bytes on every machine, on any number of threads, and for every order of the rows: sums run
over the sorted values from the least on, in the values' own precision, and start from +0.
A NaN makes NaN of its own column; infinities are ordered like any value.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Middle:
    """The mean of the ranks `low` to `high - 1` (0 is the least): a trimmed mean, or a median."""

    low: int
    high: int


@dataclass(frozen=True)
class Nearest:
    """The mean of the `keep` values nearest to a, where a is the mean of the ranks `low` to `high - 1`.

    Of two values equally far from a the lesser is kept. With v the sorted values, the kept ones are a window
    v[s] ... v[s + keep - 1], and s is the number of k for which v[k + keep] - a < a - v[k]: that holds for
    the first k and then no more, since its left side grows with k and its right side falls.
    """

    keep: int
    low: int
    high: int


@dataclass(frozen=True)
class Vote:
    """The sign of the sum of the values' signs: -1, 0 or 1; 0 at a tie."""


Stage = Middle | Nearest | Vote
