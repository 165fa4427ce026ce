"""`compressors.quantizers.int8`, rounded to the nearest level or at random."""

from __future__ import annotations

import torch
from torch import Tensor

from compressors.device.blocks import by_block, join, opened, peaks, quotient
from compressors.device.transfer import uniform

LEVEL_MAX = 127


def pack(x: Tensor, noise: Tensor | None, block: int, scale_min: float) -> Tensor:
    """noise [size] rounds at random."""
    parts: list[tuple[Tensor, Tensor]] = []
    dithers = [None, None] if noise is None else by_block(noise, block)
    for rows, dither in zip(by_block(x, block), dithers, strict=False):
        scales = peaks(rows).view(torch.float32)
        scales = quotient(scales, LEVEL_MAX, scales)
        scales = scales.masked_fill(
            scales < scale_min, 0.0
        )  # a NaN stays one, so that the body does not decode
        scaled = rows * scales.reciprocal().where(scales > 0, 0.0).unsqueeze(1)
        rounded = scaled.round_() if dither is None else scaled.add_(uniform(dither)).floor_()
        parts.append((scales, rounded.clamp_(-LEVEL_MAX, LEVEL_MAX).to(torch.int8)))
    return join(parts)


def unpack(body: Tensor, out: Tensor, block: int) -> None:
    """Writes the values of a body into out [d]."""
    for scales, levels, target in opened(body, out, block, torch.float32, lambda n: n):
        torch.mul(levels.view(torch.int8), scales, out=target)
