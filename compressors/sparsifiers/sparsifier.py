"""What a sparsifier is: a codec that sends a chunk's values at some of its coordinates and leaves the others out."""

from __future__ import annotations

from abc import abstractmethod
from math import ceil

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compressors.core.codec import Codec, CodecError, chunk_array
from compressors.core.context import ChunkContext
from compressors.device import sparse
from compressors.device.transfer import upload

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


class Sparsifier(Codec):
    """Says which coordinates; how their values and indices travel, a composition may decide in its stead."""

    fraction: float
    indices_travel: bool  # if not, both ends derive them, and there are always k of them

    def at(self, place: ChunkContext) -> Sparsifier:
        return self

    @abstractmethod
    def k(self, size: int) -> int:
        """How many coordinates of a chunk of this size are sent at most."""

    @abstractmethod
    def take_host(self, x: Tensor) -> tuple[Indices, Floats]:
        """The coordinates to send of a chunk [size] on the CPU, strictly increasing, and what is sent of them.

        [up to k] each. Where a value is not finite that may not have been chosen, nothing that is sent is.
        """

    def take_device(self, x: Tensor) -> tuple[Indices, Floats]:
        """`take_host` for a chunk elsewhere: what has nothing better copies all of it to the host."""
        return self.take_host(x.detach().cpu())

    def derived(self, size: int) -> Indices:
        """The coordinates [k] that both ends derive, where no indices travel."""
        raise TypeError(f"the indices of {self.spelling} travel")

    @abstractmethod
    def write(self, indices: Indices, values: Floats, size: int) -> bytes:
        """The body of what `take_host` gives."""

    @abstractmethod
    def read(self, body: bytes | memoryview, size: int) -> tuple[Indices, Floats]:
        """What was written: strictly increasing indices within the chunk and finite values. Raises `DecodeError`."""

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # what is random both ends derive
        return self.write(*self.take_host(x), x.numel())

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        put_host(*self.read(body, out.numel()), out)

    def encode_device(self, x: Tensor, seed: int) -> bytes:
        return self.write(*self.take_device(x), x.numel())

    def decode_device(self, body: bytes | memoryview, out: Tensor) -> None:
        put_device(*self.read(body, out.numel()), out)


def put_host(indices: Indices, values: Floats, out: Tensor) -> None:
    """out [size] becomes zero, but the values at the indices."""
    out.detach().zero_()
    chunk_array(out)[indices] = values


def put_device(indices: Indices, values: Floats, out: Tensor) -> None:
    """`put_host` for a chunk elsewhere; 8 bytes a value cross."""
    there = out.device
    sparse.scatter(upload(indices.astype(np.int32), there), upload(values, there), out.detach())


def fraction_of(name: str, argument: str | None) -> float:
    """The share of coordinates to keep, from a sparsifier's spelling. Raises `CodecError`."""
    try:
        fraction = float(argument or "")
    except ValueError:
        raise CodecError(
            f"{name} needs the fraction to keep, such as {name}:0.01, not {argument!r}"
        ) from None
    check_fraction(name, fraction)
    return fraction


def check_fraction(name: str, fraction: float) -> None:
    """Raises `CodecError` unless it is a share of coordinates to keep."""
    if not 0 < fraction <= 1:
        raise CodecError(f"{name} keeps a fraction above 0 and up to 1, not {fraction}")


def kept_count(fraction: float, size: int) -> int:
    """Coordinates kept of `size`: ceil(fraction * size)."""
    return min(size, ceil(fraction * size))
