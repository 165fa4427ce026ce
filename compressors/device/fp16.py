"""`compressors.quantizers.fp16`."""

from __future__ import annotations

import torch
from torch import Tensor

from compressors.device.blocks import peaks

BIAS = 127
ZERO = -15  # the exponent of a chunk of zeros, as of one whose largest magnitude lies from 1/2 to 1


def pack(x: Tensor, exponent_min: int, exponent_max: int, not_finite: int) -> Tensor:
    """The body of x [d] on x's device, uint8; a chunk that is not finite has `not_finite` for its exponent."""
    peak = peaks(x.unsqueeze(0))
    exponent = (peak >> 23) - BIAS - 14  # of a number below 2^-126 too low, and brought to the least
    exponent = exponent.clamp(exponent_min, exponent_max).masked_fill(peak == 0, ZERO)
    halves = (x * _power(-exponent)).to(torch.float16)
    told = exponent.masked_fill(peak >= 2 * BIAS << 23, not_finite).to(torch.int16)
    return torch.cat((told, halves.view(torch.int16))).view(torch.uint8)


def unpack(body: Tensor, out: Tensor) -> None:
    """Writes the values of a body into out [d]."""
    told, halves = body.view(torch.int16).split_with_sizes([1, out.numel()])
    torch.mul(halves.view(torch.float16), _power(told.to(torch.int32)), out=out)


def _power(exponent: Tensor) -> Tensor:
    """2^exponent, from -126 to 127, int32 to float32."""
    return ((exponent + BIAS) << 23).view(torch.float32)
