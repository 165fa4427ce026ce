"""k-means: each value becomes the nearest of C centroids, which travel with the chunk; log2 C bits a value, nearly.

Lloyd's iterations in one dimension, four of them, from centroids spread evenly between the least and the largest value;
at the end each centroid is the mean of its own. So |C(x) - x|^2 = |x|^2 - sum n_c mu_c^2, and no more than where the
iterations began: there, the cluster of the largest magnitude M has values of one sign only, its mean is at least
M / size, and with M^2 >= |x|^2 / size the loss is at most (1 - 1 / size^2) |x|^2. It is far less as a rule.

Body: C centroids, float32; then the numbers of the centroids, as many to a byte as go in: the byte is the sum of
C^j times the number of its j-th value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compressors.core.codec import Codec, CodecError, DecodeError, check_length, chunk_array
from compressors.sparsifiers.sparsifier import Floats

ITERATIONS = 4
CENTROIDS = range(2, 17)
MAGNITUDE_MAX = np.float32(2.0**126)


class KMeans(Codec):
    example = "kmeans:4"
    unbiased = False
    contractive = True
    linear = False

    knobs: ClassVar[Mapping[str, str]] = {
        "centroids": "number of centroids, from 2 to 16. More are truer and larger",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        centroids: int

    def __init__(self, centroids: int) -> None:
        """The number of centroids, from 2 to 16."""
        if centroids not in CENTROIDS:
            raise CodecError(f"kmeans has from {CENTROIDS[0]} to {CENTROIDS[-1]} centroids, not {centroids}")
        self.centroids = centroids
        self.spelling = f"kmeans:{centroids}"
        self._width = next(m for m in range(8, 0, -1) if centroids**m <= 256)

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        if argument is None or not argument.isdecimal() or len(argument) > 9:
            raise CodecError(f"kmeans needs a number of centroids, such as kmeans:4, not {argument!r}")
        return cls(int(argument))

    def delta(self, size: int) -> float:
        return 1 / max(1, size) ** 2

    def usual_delta(self, size: int) -> float:
        return max(self.delta(size), 0.25)  # 2^18 lognormal values, 3 centroids: 0.26; normal ones: 0.81

    def bytes_max(self, size: int) -> int:
        return 4 * self.centroids + -(-size // self._width)

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # deterministic
        values = chunk_array(x)
        finite = bool((np.abs(values) < MAGNITUDE_MAX).all())
        if not values.size or not finite:
            centroids = np.full(self.centroids, 0.0 if finite else np.nan, dtype="<f4")
            return centroids.tobytes() + bytes(-(-values.size // self._width))
        numbers, centroids = _lloyd(values, self.centroids)
        padded = np.zeros(-(-values.size // self._width) * self._width, dtype=np.int64)
        padded[: values.size] = numbers
        packed = padded.reshape(-1, self._width) @ self._powers
        return centroids.astype("<f4").tobytes() + packed.astype(np.uint8).tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        target = chunk_array(out)
        check_length(body, self.bytes_max(target.size))
        centroids = np.frombuffer(body, dtype="<f4", count=self.centroids)
        packed = np.frombuffer(body, dtype=np.uint8, offset=4 * self.centroids)
        if not bool((np.abs(centroids) <= MAGNITUDE_MAX).all()):
            raise DecodeError("a centroid is not finite, or is too large")
        if packed.size and int(packed.max()) >= self.centroids**self._width:
            raise DecodeError("a byte stands for no centroids")
        numbers = self._table[packed].reshape(-1)
        if bool(numbers[target.size :].any()):
            raise DecodeError("there are values behind the last")
        np.take(centroids, numbers[: target.size], out=target, mode="clip")

    @cached_property
    def _powers(self) -> NDArray[np.int64]:
        return self.centroids ** np.arange(self._width, dtype=np.int64)

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        """[bytes, values of a byte]"""
        codes = np.arange(self.centroids**self._width)[:, None] // self._powers % self.centroids
        return codes.astype(np.uint8)


def _lloyd(values: Floats, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each value's centroid, and the centroids [count], increasing; those without a value stay where they were."""
    wide = values.astype(np.float64)
    centroids = np.linspace(float(wide.min()), float(wide.max()), count)
    numbers = np.zeros(values.size, dtype=np.int64)
    for _ in range(ITERATIONS):
        numbers = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, wide, side="right")
        members = np.bincount(numbers, minlength=count)
        sums = np.bincount(numbers, weights=wide, minlength=count)
        centroids = np.where(members > 0, sums / np.maximum(1, members), centroids)
    return numbers, centroids
