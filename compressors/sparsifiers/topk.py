"""Top-k: of each chunk only the k coordinates of largest magnitude, k = ceil(fraction * size).

    |C(x) - x|^2 <= (1 - k / size) |x|^2, with equality only where all magnitudes are equal

Always the exact top k (ties go to the lower index), found the quick way: a threshold from a strided sample
leaves a few more than k candidates, and only these are partitioned. Zeros are never sent, so a body may hold
fewer than k.

Body: for each segment of 65,536 coordinates its number of values, uint32; all values, float32; their indices
within the segments, uint16, strictly increasing. 48 bits a value sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite, sqrt
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from compressors.core.codec import DecodeError, chunk_array
from compressors.core.scratch import scratch
from compressors.device import sparse
from compressors.device.transfer import download
from compressors.sparsifiers.sparsifier import (
    Floats,
    Indices,
    Sparsifier,
    check_fraction,
    fraction_of,
    kept_count,
)

SEGMENT = 1 << 16
SAMPLE = 4096
VALUE_BYTES = 6
SMALLEST = 2.0**-149  # of the float32 numbers above zero


class TopK(Sparsifier):
    usual = True
    example = "topk:0.01"
    unbiased = False
    contractive = True
    linear = False
    indices_travel = True

    knobs: ClassVar[Mapping[str, str]] = {
        "fraction": "share of coordinates to keep, above 0 and up to 1",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        fraction: float

        def __post_init__(self) -> None:
            check_fraction("topk", self.fraction)

    def __init__(self, fraction: float) -> None:
        """The fraction of coordinates to keep, above 0 and up to 1."""
        self.fraction = fraction
        self.spelling = f"topk:{fraction!r}"

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        return cls(fraction_of("topk", argument))

    def sharing(self, share: Callable[[float], float]) -> TopK:
        return TopK(share(self.fraction))

    def k(self, size: int) -> int:
        return kept_count(self.fraction, size)

    def delta(self, size: int) -> float:
        return self.k(size) / size if size else 1.0

    def bytes_max(self, size: int) -> int:
        return 4 * -(-size // SEGMENT) + VALUE_BYTES * self.k(size)

    def take_host(self, x: Tensor) -> tuple[Indices, Floats]:
        values = chunk_array(x)
        kept = _select(values, self.k(values.size))
        return kept, values[kept]

    def take_device(self, x: Tensor) -> tuple[Indices, Floats]:
        k = self.k(x.numel())
        if not k:
            return super().take_device(x)
        indices, bits = download(sparse.largest(x.detach(), k))
        values = bits.view(np.float32)
        sent = values != 0  # a NaN is not 0 either, and is sent
        return indices[sent].astype(np.intp), values[sent]

    def write(self, indices: Indices, values: Floats, size: int) -> bytes:
        ends = np.searchsorted(indices, np.arange(SEGMENT, size + SEGMENT, SEGMENT))
        counts = np.diff(ends, prepend=0).astype("<u4")
        return b"".join((counts.tobytes(), values.tobytes(), indices.astype("<u2").tobytes()))

    def read(self, body: bytes | memoryview, size: int) -> tuple[Indices, Floats]:
        return _read(body, size, self.k(size))


def _select(values: Floats, k: int) -> Indices:
    """Indices of the k largest magnitudes that are not zero, increasing.

    What is not finite counts as largest.
    """
    magnitudes = scratch("topk.magnitudes", values.size, torch.float32).numpy()
    np.abs(values, out=magnitudes)
    candidates = _not_below(magnitudes, _sampled_threshold(magnitudes, k))
    if candidates.size < k:  # the sample misled, or most are zero
        candidates = _not_below(magnitudes, SMALLEST)
    if candidates.size <= k:
        return candidates
    strengths = magnitudes[candidates]
    strengths[np.isnan(strengths)] = np.inf
    weakest = np.partition(strengths, candidates.size - k)[candidates.size - k]
    keep = strengths > weakest
    ties = np.flatnonzero(strengths == weakest)
    keep[ties[: k - np.count_nonzero(keep)]] = True
    kept: Indices = candidates[keep]
    return kept


def _not_below(magnitudes: Floats, threshold: float) -> Indices:
    mask = scratch("topk.mask", magnitudes.size, torch.bool).numpy()
    np.less(magnitudes, np.float32(threshold), out=mask)
    np.logical_not(mask, out=mask)  # not >=, which would lose NaN
    return np.flatnonzero(mask)


def _sampled_threshold(magnitudes: Floats, k: int) -> float:
    """A magnitude that hardly ever fewer than k reach, judged by a sample."""
    # An odd stride, since the rows of weight matrices tend to have even lengths.
    sample = magnitudes[:: magnitudes.size // SAMPLE | 1]
    expected = k * sample.size / max(1, magnitudes.size)
    rank = ceil(expected + 3 * sqrt(expected)) + 2
    if rank >= sample.size:
        return SMALLEST
    threshold = float(np.partition(sample, sample.size - rank)[sample.size - rank])
    return max(threshold, SMALLEST) if isfinite(threshold) else SMALLEST


def _read(body: bytes | memoryview, size: int, k: int) -> tuple[Indices, Floats]:
    """Indices and values of a body, checked. Raises `DecodeError`."""
    segments = -(-size // SEGMENT)
    if len(body) < 4 * segments:
        raise DecodeError(f"the body has {len(body)} bytes where {4 * segments} are due at least")
    counts = np.frombuffer(body, dtype="<u4", count=segments).astype(np.int64)
    count = int(counts.sum())
    if count > k:
        raise DecodeError(f"the body claims {count} values where {k} are due at most")
    wanted = 4 * segments + VALUE_BYTES * count
    if len(body) != wanted:
        raise DecodeError(f"the body has {len(body)} bytes where {wanted} are due")
    values = np.frombuffer(body, dtype="<f4", count=count, offset=4 * segments)
    low = np.frombuffer(body, dtype="<u2", count=count, offset=4 * segments + 4 * count)
    indices = np.repeat(np.arange(segments, dtype=np.intp) * SEGMENT, counts)
    indices += low
    if count and (int(indices[-1]) >= size or bool((indices[1:] <= indices[:-1]).any())):
        raise DecodeError("the indices are not strictly increasing, or run past the chunk")
    if not bool(np.isfinite(values).all()):
        raise DecodeError("a value is not finite")
    return indices, values
