"""`compressors.quantizers.sign`. Sums have another order than on the CPU, so a scale may be rounded to a neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from compressors.device.blocks import (
    by_block,
    by_lane,
    join,
    join_bits,
    opened,
    round_scales,
    split_bits,
)


def pack(x: Tensor, block: int) -> Tensor:
    """The body of x [d] on x's device, uint8."""
    parts: list[tuple[Tensor, Tensor]] = []
    for rows in by_block(x, block):
        sums = (rows.abs() * (1 / block)).sum(1)  # a part each: no sum becomes infinite
        means = sums.mul_(block / rows.shape[1]).abs()  # a NaN may come with its sign set
        signs = by_lane((rows < 0).to(torch.uint8), 8, 0)
        parts.append((round_scales(means.view(torch.int32))[0], join_bits(signs)))
    return join(parts)


def unpack(body: Tensor, out: Tensor, block: int) -> None:
    """Writes the values of a body into out [d]."""
    for scales, packed, target in opened(body, out, block, torch.bfloat16, lambda n: -(-n // 8)):
        negative = split_bits(packed).flatten(1).narrow(1, 0, target.shape[1])
        torch.where(negative.bool(), -scales, scales, out=target)
