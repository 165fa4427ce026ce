"""Random-k: of each chunk k = ceil(fraction * size) random coordinates, which both ends derive: no index travels.

    C(x)_i = L_i x_i on the mask, 0 elsewhere;     E|C(x) - x|^2 <= (max L - 1) |x|^2

The chunk is cut into k strata of nearly equal lengths L, and one coordinate of each is drawn, so that each is drawn
with probability 1 / L_i: as good as drawing without replacement, and as fast as memory. "unscaled" leaves out the
factor, which makes it a contraction with delta = 1 / max L, for a feedback to go with.

Each sender has masks of its own, whose losses average out; with "common" all senders of a round have the same, so that
their bodies add up, and a robust rule compares updates that speak of the same coordinates.
Body: the values, float32. 32 bits a value sent.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.random import PCG64DXSM
from torch import Tensor

from compressors.codec import CodecError, DecodeError, check_length, chunk_array
from compressors.place import NOWHERE, Place
from compressors.sparsifier import Floats, Indices, Sparsifier, fraction_of, kept_count


class RandK(Sparsifier):
    example = "randk:0.01"
    indices_travel = False

    def __init__(
        self, fraction: float, *, common: bool = False, unscaled: bool = False, place: Place = NOWHERE
    ) -> None:
        """The fraction to keep, above 0 and up to 1; then "common", one mask for all senders, and "unscaled"."""
        self.fraction = fraction
        self.common = common
        self.unscaled = unscaled
        self.unbiased = not unscaled
        self.contractive = unscaled
        self.linear = common
        self.spelling = f"randk:{fraction!r}" + ":common" * common + ":unscaled" * unscaled
        self._seed = place.common if common else place.own

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        share, *options = (argument or "").split(":")
        if len(set(options)) < len(options) or not {*options} <= {"common", "unscaled"}:
            raise CodecError(
                f"randk takes the fraction to keep, then common, unscaled or both, not {argument!r}"
            )
        return cls(fraction_of("randk", share), common="common" in options, unscaled="unscaled" in options)

    def at(self, place: Place) -> RandK:
        return RandK(self.fraction, common=self.common, unscaled=self.unscaled, place=place)

    def k(self, size: int) -> int:
        return kept_count(self.fraction, size)

    def delta(self, size: int) -> float:
        if not self.unscaled:
            return super().delta(size)
        return 1 / self._longest(size)

    def omega(self, size: int) -> float:
        if self.unscaled:
            return super().omega(size)
        return self._longest(size) - 1.0

    def _longest(self, size: int) -> int:
        return -(-size // max(1, self.k(size))) or 1

    def bytes_max(self, size: int) -> int:
        return 4 * self.k(size)

    def choose(self, values: Floats) -> Indices:
        return self._mask(values.size)

    def gains(self, size: int) -> Floats | None:
        return None if self.unscaled else np.diff(self._strata(size)).astype(np.float32)

    def _strata(self, size: int) -> Indices:
        k = self.k(size)
        return np.arange(k + 1, dtype=np.intp) * size // max(1, k)

    def _mask(self, size: int) -> Indices:
        strata = self._strata(size)
        # numpy promises that the words of a bit generator never change; 32 bits of each are enough.
        words = PCG64DXSM(self._seed).random_raw(strata.size - 1) >> np.uint64(32)
        drawn = words * np.diff(strata).astype(np.uint64) >> np.uint64(32)
        return strata[:-1] + drawn.astype(np.intp)

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # what is random both ends derive
        return self.take(chunk_array(x))[1].astype("<f4").tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        target = chunk_array(out)
        check_length(body, self.bytes_max(target.size))
        values = np.frombuffer(body, dtype="<f4")
        if not bool(np.isfinite(values).all()):
            raise DecodeError("a value is not finite")
        out.detach().zero_()
        target[self._mask(target.size)] = values
