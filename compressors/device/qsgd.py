"""`compressors.quantizers.qsgd`. A norm's sum has another order than on the CPU, so it may differ in its last bit."""

from __future__ import annotations

import torch
from torch import Tensor

from compressors.device.blocks import (
    by_block,
    by_lane,
    join,
    join_bits,
    numbers,
    opened,
    quotient,
    split_bits,
)
from compressors.device.transfer import uniform


def pack(x: Tensor, noise: Tensor, levels: int, block: int, norm_min: float) -> Tensor:
    """noise [size]"""
    parts: list[tuple[Tensor, Tensor]] = []
    for rows, dither in zip(by_block(x, block), by_block(noise, block), strict=True):
        norms = rows.double().square_().sum(1).sqrt_().float()
        norms = norms.masked_fill(norms < norm_min, 0.0)
        inverses = quotient(levels, norms, norms).where(norms > 0, 0.0)
        reached = (rows * inverses.unsqueeze(1)).abs_().add_(uniform(dither)).clamp_(max=levels)
        steps = reached.to(torch.int32)
        codes = (levels + torch.where(rows < 0, -steps, steps)).to(torch.uint8)
        lanes = by_lane(codes, 8, 0).unsqueeze(1)
        planes = (lanes >> numbers((2 * levels).bit_length(), lanes).unsqueeze(1)) & 1
        parts.append((norms, join_bits(planes).flatten(1)))
    return join(parts)


def unpack(body: Tensor, out: Tensor, levels: int, block: int) -> None:
    """Writes the values of a body into out [d]."""
    planes = (2 * levels).bit_length()
    for norms, packed, target in opened(body, out, block, torch.float32, lambda n: planes * -(-n // 8)):
        bits = split_bits(packed.view(len(target), planes, -1)).flatten(2)
        codes = join_bits(bits).narrow(1, 0, target.shape[1])
        torch.mul(codes.float() - levels, quotient(norms, levels, norms), out=target)
