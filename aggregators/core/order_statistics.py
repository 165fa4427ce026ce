"""Reducers that judge each coordinate by the order of its values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from aggregators import kernels


@dataclass(frozen=True)
class _Columnwise:
    """A stage of `kernels.stages` over m rows."""

    m: int

    @property
    def stage(self) -> kernels.Stage:
        raise NotImplementedError

    def reduce(self, rows: Tensor, out: Tensor, mixing: kernels.Mixing | None = None) -> None:
        """From `rows` [m, b] to `out` [b], leaving `rows` as they are; any width, on torch's threads.

        With a `mixing` W [m, n] the rows are those of W @ `rows` [n, b], which are never written to memory.
        """
        kernels.reduce(rows, out, self.stage, mixing)


@dataclass(frozen=True)
class MiddleMean(_Columnwise):
    """The mean of ranks `low` to `high - 1` of each column of m rows: a trimmed mean, or a median.

    A NaN makes NaN of its own column; infinities are ordered like any value.
    """

    low: int
    high: int

    @property
    def stage(self) -> kernels.Stage:
        return kernels.Middle(self.low, self.high)


@dataclass(frozen=True)
class NearestMean(_Columnwise):
    """The mean of the `keep` values of each column nearest to the mean of its ranks `low` to `high - 1`.

    With the middle rank, or the two of an even m, that is MeaMed; with ranks f to m - f - 1, Phocas. Of two
    values equally far the lesser is kept.
    """

    keep: int
    low: int
    high: int

    @property
    def stage(self) -> kernels.Stage:
        return kernels.Nearest(self.keep, self.low, self.high)


@dataclass(frozen=True)
class SignVote(_Columnwise):
    """The sign of the sum of the signs of each column of m rows: -1, 0 or 1."""

    @property
    def stage(self) -> kernels.Stage:
        return kernels.Vote()
