"""`compressors.quantizers.e4m3`, whose codes torch knows as float8_e4m3fn."""

from __future__ import annotations

import torch
from torch import Tensor

from compressors.device.blocks import by_block, join, opened, peaks, quotient, round_scales

LARGEST = 448


def pack(x: Tensor, block: int) -> Tensor:
    """The body of x [d] on x's device, uint8."""
    parts: list[tuple[Tensor, Tensor]] = []
    for rows in by_block(x, block):
        stored, inverses = round_scales(peaks(rows))
        parts.append((stored, (rows * inverses).mul_(LARGEST).to(torch.float8_e4m3fn)))
    return join(parts)


def unpack(body: Tensor, out: Tensor, block: int) -> None:
    """Writes the values of a body into out [d]."""
    for scales, codes, target in opened(body, out, block, torch.bfloat16, lambda n: n):
        shares = codes.view(torch.float8_e4m3fn).float()
        torch.mul(quotient(shares, LARGEST, shares), scales, out=target)
