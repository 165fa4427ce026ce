"""Block int8: blocks of 256 coordinates share a scale; 8.125 bits a coordinate.

    s = max|x| / 127 over the block;  q = round(x / s) in -127..127;  C(x) = s q

Rounding errs by at most s / 2, so a block of 256 loses at most 256 s^2 / 4 = 64 / 127^2 max|x|^2, which is at
most 0.00397 |x|^2. "int8:stochastic" rounds at random instead, q = floor(x / s + u) with u uniform in (0, 1):
unbiased, with a variance that has the same bound. A block whose largest magnitude is below 1.5e-36 (the scale
would not be a normal number) becomes zero; above 1.6e38 it does not decode.
Body: the scales, float32; then the levels, int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from compressors.core.codec import CodecError, DecodeError, check_length, chunk_array
from compressors.core.scratch import scratch
from compressors.device import int8 as device
from compressors.device.codec import DeviceCodec
from compressors.device.transfer import noise

BLOCK = 256
LOSS = 0.004  # of |x|^2, at most, by a whole block
LEVEL_MAX = 127
SCALE_MIN = 2.0**-126  # smallest normal float32: its reciprocal is finite
SCALE_MAX = 2.0**120  # 127 of these are finite


class Int8(DeviceCodec):
    usual = True
    contractive = True
    linear = False

    knobs: ClassVar[Mapping[str, str]] = {
        "stochastic": "rounds at random, without a bias",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        stochastic: bool = False

    def __init__(self, *, stochastic: bool = False) -> None:
        """None, or "stochastic" to round at random, without a bias."""
        self.unbiased = stochastic
        self.spelling = "int8:stochastic" if stochastic else "int8"

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        if argument not in {None, "stochastic"}:
            raise CodecError(f"int8 takes no argument but stochastic, not {argument!r}")
        return cls(stochastic=argument is not None)

    def delta(self, size: int) -> float:
        return 1.0 - LOSS * min(1.0, size / BLOCK)

    def omega(self, size: int) -> float:
        return LOSS * min(1.0, size / BLOCK) if self.unbiased else super().omega(size)

    def bytes_max(self, size: int) -> int:
        return size + 4 * -(-size // BLOCK)

    def encode_host(self, x: Tensor, seed: int) -> bytes:
        size = chunk_array(x).size
        if self.unbiased and size:
            # Only here, since who never asks for it need not load the compiler.
            from compressors.quantizers.int8_stochastic import encode_blocks

            return encode_blocks(chunk_array(x), seed, BLOCK, SCALE_MIN)
        x = x.detach()
        body = scratch("int8.body", self.bytes_max(size), torch.uint8)
        scales, levels = body[:-size].view(torch.float32), body[-size:].view(torch.int8)
        work = scratch("int8.work", size, torch.float32)
        whole = size - size % BLOCK
        for start, stop, width in ((0, whole, BLOCK), (whole, size, size - whole)):
            if start < stop:
                rows = (stop - start) // width
                first = start // BLOCK
                _encode_blocks(
                    x[start:stop].view(rows, width),
                    scales[first : first + rows],
                    levels[start:stop].view(rows, width),
                    work[start:stop].view(rows, width),
                )
        return body.numpy().tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        size = out.numel()
        scales, levels = self._read(body, size)
        whole = size - size % BLOCK
        torch.mul(
            levels[:whole].view(-1, BLOCK), scales[: whole // BLOCK, None], out=out[:whole].view(-1, BLOCK)
        )
        if whole < size:
            torch.mul(levels[whole:], scales[-1], out=out[whole:])

    def pack(self, x: Tensor, seed: int) -> Tensor:
        return device.pack(x, noise(seed, x) if self.unbiased else None, BLOCK, SCALE_MIN)

    def check(self, body: bytes | memoryview, size: int) -> None:
        self._read(body, size)

    def unpack(self, body: Tensor, out: Tensor) -> None:
        device.unpack(body, out, BLOCK)

    def _read(self, body: bytes | memoryview, size: int) -> tuple[Tensor, Tensor]:
        """The scales and levels of a body, checked; scratch. Raises `DecodeError`."""
        check_length(body, self.bytes_max(size))
        blocks = -(-size // BLOCK)
        scales = scratch("int8.scales", blocks, torch.float32)
        levels = scratch("int8.levels", size, torch.int8)
        np.copyto(scales.numpy(), np.frombuffer(body, dtype="<f4", count=blocks))
        np.copyto(levels.numpy(), np.frombuffer(body, dtype="<i1", offset=4 * blocks))
        if not bool(((scales >= 0) & (scales <= SCALE_MAX)).all()):
            raise DecodeError("a scale is negative, too large or not a number")
        if size and int(levels.amin()) < -LEVEL_MAX:
            raise DecodeError(f"a level is below {-LEVEL_MAX}")
        return scales, levels


def _encode_blocks(x: Tensor, scales: Tensor, levels: Tensor, work: Tensor) -> None:
    """x, levels and work [rows, width], scales [rows]; fills scales and levels."""
    torch.amax(x, 1, out=scales)
    torch.maximum(scales, torch.amin(x, 1).neg_(), out=scales)
    scales.div_(LEVEL_MAX)
    scales.mul_(~(scales < SCALE_MIN))  # a NaN stays one, so that the body does not decode
    inverse = torch.where(scales > 0, scales.reciprocal(), 0.0)
    torch.mul(x, inverse[:, None], out=work)
    levels.copy_(work.round_())
