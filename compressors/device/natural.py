"""`compressors.quantizers.natural`."""

from __future__ import annotations

import torch
from torch import Tensor

from compressors.device.blocks import peaks

MANTISSA_BITS = 23


def pack(x: Tensor, noise: Tensor, exponents: int, no_base: int) -> Tensor:
    """noise [size]"""
    base = (peaks(x.unsqueeze(0)) >> MANTISSA_BITS) + 1 - exponents
    base = base.clamp(min=0).masked_fill(base > exponents, no_base)
    bits = x.view(torch.int32)
    lifted = (bits & 0x7FFFFFFF) + (noise << 7) + 64  # which carries into the exponent
    codes = ((lifted >> MANTISSA_BITS) - base).clamp_(min=0)
    codes |= (bits >> 24) & 0x80
    return torch.cat((base.to(torch.uint8), codes.to(torch.uint8)))


def unpack(body: Tensor, out: Tensor) -> None:
    """Writes the values of a body into out [d]."""
    base, codes = body.split_with_sizes([1, out.numel()])
    exponents = (codes & 0x7F).to(torch.int32)
    bits = (exponents + base).masked_fill(exponents == 0, 0) << MANTISSA_BITS
    magnitudes = bits.view(torch.float32)
    torch.where(codes > 0x7F, -magnitudes, magnitudes, out=out)
