"""What a sparsifier is: a codec that sends a chunk's values at some of its coordinates and leaves the others out."""

from __future__ import annotations

from abc import abstractmethod
from math import ceil

import numpy as np
from numpy.typing import NDArray

from compressors.codec import Codec, CodecError
from compressors.place import Place

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


class Sparsifier(Codec):
    """Says which coordinates; how their values and indices travel, a composition may decide in its stead."""

    fraction: float
    indices_travel: bool  # if not, both ends derive them, and there are always k of them

    def at(self, place: Place) -> Sparsifier:
        return self

    @abstractmethod
    def k(self, size: int) -> int:
        """How many coordinates of a chunk of this size are sent at most."""

    @abstractmethod
    def choose(self, values: Floats) -> Indices:
        """The coordinates of a chunk [size] to send: [up to k], strictly increasing."""

    def take(self, values: Floats) -> tuple[Indices, Floats]:
        """The coordinates of a chunk [size] to send, and what is sent of them: [up to k] each.

        Where a value is not finite that may not have been chosen, nothing that is sent is.
        """
        chosen = self.choose(values)
        kept, gains = values[chosen], self.gains(values.size)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite is what does not decode
            if gains is not None:
                kept *= gains
            # A NaN passes through both reductions.
            if not self.indices_travel and values.size and not np.isfinite(values.max() - values.min()):
                kept[:] = np.nan
        return chosen, kept

    def gains(self, size: int) -> Floats | None:
        """What the chosen values are multiplied by before they are sent, [k]; None for 1."""
        return None


def fraction_of(name: str, argument: str | None) -> float:
    """The share of coordinates to keep, from a sparsifier's spelling. Raises `CodecError`."""
    try:
        fraction = float(argument or "")
    except ValueError:
        raise CodecError(
            f"{name} needs the fraction to keep, such as {name}:0.01, not {argument!r}"
        ) from None
    if not 0 < fraction <= 1:
        raise CodecError(f"{name} keeps a fraction above 0 and up to 1, not {fraction}")
    return fraction


def kept_count(fraction: float, size: int) -> int:
    return min(size, ceil(fraction * size))
