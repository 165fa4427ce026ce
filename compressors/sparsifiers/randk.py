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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.random import PCG64DXSM
from torch import Tensor

from compressors.core.codec import CodecError, DecodeError, check_length, chunk_array
from compressors.core.context import NO_CONTEXT, ChunkContext
from compressors.device import sparse
from compressors.device.transfer import download, upload
from compressors.sparsifiers.sparsifier import (
    Floats,
    Indices,
    Sparsifier,
    check_fraction,
    fraction_of,
    kept_count,
)


class RandK(Sparsifier):
    example = "randk:0.01"
    indices_travel = False

    knobs: ClassVar[Mapping[str, str]] = {
        "fraction": "share of coordinates to keep, above 0 and up to 1",
        "common": "one mask for all senders of a round, so that bodies add up",
        "unscaled": "values as they are: biased, contractive",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        fraction: float
        common: bool = False
        unscaled: bool = False

        def __post_init__(self) -> None:
            check_fraction("randk", self.fraction)

    def __init__(
        self,
        fraction: float,
        *,
        common: bool = False,
        unscaled: bool = False,
        place: ChunkContext = NO_CONTEXT,
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

    def at(self, place: ChunkContext) -> RandK:
        return RandK(self.fraction, common=self.common, unscaled=self.unscaled, place=place)

    def sharing(self, share: Callable[[float], float]) -> RandK:
        return RandK(share(self.fraction), common=self.common, unscaled=self.unscaled)

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

    def take_host(self, x: Tensor) -> tuple[Indices, Floats]:
        values, chosen = chunk_array(x), self.derived(x.numel())
        with np.errstate(over="ignore", invalid="ignore"):
            spread = values.max() - values.min() if values.size else np.float32(0)
        return chosen, self._sent(values[chosen], spread, values.size)

    def take_device(self, x: Tensor) -> tuple[Indices, Floats]:
        if not x.numel():
            return super().take_device(x)
        chosen = self.derived(x.numel())
        kept = download(sparse.gather(x.detach(), upload(chosen.astype(np.int32), x.device)))
        return chosen, self._sent(kept[:-1], kept[-1], x.numel())

    def _sent(self, kept: Floats, spread: np.float32, size: int) -> Floats:
        """`spread` is the largest value of the chunk less the smallest: a NaN passes through both reductions."""
        if not self.unscaled:
            with np.errstate(over="ignore", invalid="ignore"):  # infinite is what does not decode
                kept *= np.diff(self._strata(size)).astype(np.float32)
        if not np.isfinite(spread):
            kept[:] = np.nan
        return kept

    def _strata(self, size: int) -> Indices:
        k = self.k(size)
        return np.arange(k + 1, dtype=np.intp) * size // max(1, k)

    def derived(self, size: int) -> Indices:
        strata = self._strata(size)
        # numpy promises that the words of a bit generator never change; 32 bits of each are enough.
        words = PCG64DXSM(self._seed).random_raw(strata.size - 1) >> np.uint64(32)
        drawn = words * np.diff(strata).astype(np.uint64) >> np.uint64(32)
        return strata[:-1] + drawn.astype(np.intp)

    def write(self, indices: Indices, values: Floats, size: int) -> bytes:
        return values.astype("<f4").tobytes()

    def read(self, body: bytes | memoryview, size: int) -> tuple[Indices, Floats]:
        check_length(body, self.bytes_max(size))
        values = np.frombuffer(body, dtype="<f4")
        if not bool(np.isfinite(values).all()):
            raise DecodeError("a value is not finite")
        return self.derived(size), values
