"""`compressors.quantizers.terngrad`."""

from __future__ import annotations

import torch
from torch import Tensor

from compressors.device.blocks import by_block, by_lane, join, numbers, opened, peaks, round_scales

TRITS = 5  # of a byte
STEPS = 1 << 16


def pack(x: Tensor, noise: Tensor, block: int) -> Tensor:
    """noise [size]"""
    parts: list[tuple[Tensor, Tensor]] = []
    for rows, dither in zip(by_block(x, block), by_block(noise, block), strict=True):
        stored, inverses = round_scales(peaks(rows))
        scaled = (rows * inverses).mul_(STEPS)
        kept = scaled.abs() > dither.float() + 0.5
        trits = (scaled.sign() * kept + 1).to(torch.uint8)
        lanes = by_lane(trits, TRITS, 1)
        parts.append((stored, (lanes * 3 ** numbers(TRITS, lanes)).sum(1, dtype=torch.uint8)))
    return join(parts)


def unpack(body: Tensor, out: Tensor, block: int) -> None:
    """Writes the values of a body into out [d]."""
    for scales, packed, target in opened(body, out, block, torch.bfloat16, lambda n: -(-n // TRITS)):
        powers = 3 ** numbers(TRITS, packed)
        trits = torch.div(packed.unsqueeze(1), powers, rounding_mode="floor") % 3
        signs = trits.flatten(1).narrow(1, 0, target.shape[1]).float() - 1
        torch.mul(signs, scales, out=target)
