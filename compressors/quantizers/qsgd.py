"""QSGD: of each bucket of 512 its norm, and stochastically rounded multiples of a fraction of it.

    level = floor(LEVELS |x| / |bucket| + u), u uniform in (0, 1);  C(x) = sign(x) level |bucket| / LEVELS

Unbiased with omega = min(n / LEVELS^2, sqrt(n) / LEVELS) for a bucket of n (Alistarh et al. 2017, lemma 3.1).
w = bit_length(2 LEVELS) bits a coordinate and 32 a bucket: LEVELS = 2^(w-1) - 1 leaves none unused.
A bucket whose norm is below 2^-120 becomes zero; above 2^120 it does not decode.
Body: the buckets' norms, float32; then for each bucket of n its w planes of ceil(n / 8) bytes.
In the plane p the bit k of the byte j is the bit p of sign level + LEVELS of the coordinate j + k ceil(n / 8);
bits of no coordinate are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressors.core.codec import CodecError, DecodeError, check_length, chunk_array
from compressors.core.compiled import compiled
from compressors.core.scratch import scratch
from compressors.device import qsgd as device
from compressors.device.codec import DeviceCodec
from compressors.device.transfer import noise
from compressors.quantizers.blocks import Codes, Floats, block_count, read_codes
from compressors.quantizers.dither import dither

BUCKET = 512
LANES = BUCKET // 8
LEVELS_MAX = 127
NORM_MIN, NORM_MAX = 2.0**-120, 2.0**120  # LEVELS divided by these is finite and not zero
UNIT = np.float32(2.0**-16)


class Qsgd(DeviceCodec):
    example = "qsgd:7"
    source = "Alistarh et al. 2017"
    unbiased = True
    contractive = False
    linear = False

    knobs: ClassVar[Mapping[str, str]] = {
        "levels": "levels above zero, from 1 to 127. More are truer and larger",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        levels: int

    def __init__(self, levels: int) -> None:
        """The number of levels above zero."""
        if not 1 <= levels <= LEVELS_MAX:
            raise CodecError(f"qsgd has from 1 to {LEVELS_MAX} levels, not {levels}")
        self.levels = levels
        self.planes = (2 * levels).bit_length()
        self.spelling = f"qsgd:{levels}"

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        if argument is None or not (argument.isascii() and argument.isdecimal()):
            raise CodecError(f"qsgd needs its number of levels, such as qsgd:7, not {argument!r}")
        return cls(int(argument[:9]))

    def omega(self, size: int) -> float:
        n = min(size, BUCKET)
        return min(n / self.levels**2, sqrt(n) / self.levels) + 1e-4  # 16-bit probabilities, float32 norms

    def bytes_max(self, size: int) -> int:
        return 4 * block_count(size, BUCKET) + self.planes * -(-size // 8)

    def encode_host(self, x: Tensor, seed: int) -> bytes:
        values = chunk_array(x)
        norms = np.empty(block_count(values.size, BUCKET), dtype=np.float32)
        planes = scratch("qsgd.planes", self.planes * -(-values.size // 8), torch.uint8).numpy()
        find_norms(values, norms)
        norms[norms < NORM_MIN] = 0
        inverses = np.zeros_like(norms)
        np.divide(np.float32(self.levels), norms, out=inverses, where=norms > 0)
        to_planes(values, inverses, dither(seed, values.size), self.levels, planes)
        return norms.tobytes() + planes.tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        values = chunk_array(out)
        norms, codes = self._read(body, values.size)
        steps: Floats = np.divide(norms, self.levels, dtype=np.float32)
        to_values(codes, steps, self.levels, values)

    def pack(self, x: Tensor, seed: int) -> Tensor:
        return device.pack(x, noise(seed, x), self.levels, BUCKET, NORM_MIN)

    def check(self, body: bytes | memoryview, size: int) -> None:
        self._read(body, size)

    def unpack(self, body: Tensor, out: Tensor) -> None:
        device.unpack(body, out, self.levels, BUCKET)

    def _read(self, body: bytes | memoryview, size: int) -> tuple[Floats, Codes]:
        """The norms and levels of a body, checked; scratch. Raises `DecodeError`."""
        check_length(body, self.bytes_max(size))
        norms: Floats = np.frombuffer(body, dtype="<f4", count=block_count(size, BUCKET))
        planes = read_codes(body, norms.nbytes)
        if not bool(((norms >= 0) & (norms <= NORM_MAX)).all()):
            raise DecodeError("a norm is negative, too large or not a number")
        codes = scratch("qsgd.codes", size, torch.uint8).numpy()
        from_planes(planes, codes)
        if codes.size and codes.max() > 2 * self.levels:
            raise DecodeError(f"a level is above {self.levels}")
        return norms, codes


@compiled
def find_norms(values: Floats, norms: Floats) -> None:
    """Writes each bucket's L2 norm, summed in float64."""
    sums = np.empty(LANES, dtype=np.float64)
    for b in range(norms.size):
        row = values[b * BUCKET : (b + 1) * BUCKET]
        width = (row.size + 7) // 8
        sums[:] = 0
        for k in range(8):
            lane = row[k * width : (k + 1) * width]
            for j in range(lane.size):
                wide = np.float64(lane[j])
                sums[j] += wide * wide
        norms[b] = np.sqrt(sums[:width].sum())


@compiled
def to_planes(
    values: Floats, inverses: Floats, noise: NDArray[np.uint16], levels: int, planes: Codes
) -> None:
    """Rounds each value at random to a level of its bucket, and packs the levels' bits plane by plane."""
    codes = np.empty(BUCKET, dtype=np.uint8)
    middle = np.int32(levels)
    at = 0
    for b in range(inverses.size):
        row, dithers = values[b * BUCKET : (b + 1) * BUCKET], noise[b * BUCKET : (b + 1) * BUCKET]
        for i in range(row.size):
            uniform = (np.float32(dithers[i]) + np.float32(0.5)) * UNIT
            level = min(np.int32(abs(row[i] * inverses[b]) + uniform), middle)
            codes[i] = np.uint8(middle - level if row[i] < 0 else middle + level)
        width = (row.size + 7) // 8
        plane = 0
        while (2 * levels) >> plane:
            target = planes[at : at + width]
            target[:] = 0
            for k in range(8):
                lane = codes[k * width : min((k + 1) * width, row.size)]
                for j in range(lane.size):
                    target[j] |= np.uint8(((lane[j] >> np.uint8(plane)) & np.uint8(1)) << np.uint8(k))
            at += width
            plane += 1


@compiled
def from_planes(planes: Codes, codes: Codes) -> None:
    """The planes of all buckets to codes; their number follows from the sizes."""
    at = 0
    for start in range(0, codes.size, BUCKET):
        row = codes[start : start + BUCKET]
        width = (row.size + 7) // 8
        row[:] = 0
        for plane in range(planes.size // ((codes.size + 7) // 8)):
            source = planes[at : at + width]
            for k in range(8):
                lane = row[k * width : (k + 1) * width]
                for j in range(lane.size):
                    bit = np.uint8((source[j] >> np.uint8(k)) & np.uint8(1))
                    lane[j] |= np.uint8(bit << np.uint8(plane))
            at += width


@compiled
def to_values(codes: Codes, steps: Floats, levels: int, values: Floats) -> None:
    """Writes each code's value: its level times its bucket's step."""
    middle = np.int32(levels)
    for b in range(steps.size):
        row, source = values[b * BUCKET : (b + 1) * BUCKET], codes[b * BUCKET : (b + 1) * BUCKET]
        for i in range(row.size):
            row[i] = np.float32(np.int32(source[i]) - middle) * steps[b]
