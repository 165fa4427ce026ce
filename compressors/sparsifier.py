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
