"""`compressors.quantizers.levels`: int4, nf4, e3m0."""

from __future__ import annotations

import torch
from torch import Tensor

from compressors.device.blocks import by_block, by_lane, join, opened, peaks, round_scales


def pack(x: Tensor, thresholds: Tensor, zero: int, block: int) -> Tensor:
    """thresholds [15]: the least x / s of the indices from 1 on; `zero` is the index of the level 0."""
    parts: list[tuple[Tensor, Tensor]] = []
    for rows in by_block(x, block):
        stored, inverses = round_scales(peaks(rows))
        indices = torch.bucketize(rows * inverses, thresholds, right=True, out_int32=True)
        low, high = by_lane(indices.to(torch.uint8), 2, zero).unbind(1)
        parts.append((stored, low | high << 4))
    return join(parts)


def unpack(body: Tensor, out: Tensor, table: Tensor, block: int) -> None:
    """table [16] the level of each index"""
    for scales, packed, target in opened(body, out, block, torch.bfloat16, lambda n: -(-n // 2)):
        indices = torch.stack((packed & 15, packed >> 4), 1).flatten(1).narrow(1, 0, target.shape[1])
        levels = table.index_select(0, indices.flatten().to(torch.int32)).view_as(indices)
        torch.mul(levels, scales, out=target)
