"""Blocks of neighbouring coordinates, see `compressors.quantizers.blocks`: all whole ones at once, then the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

INFINITE = 0x7F80  # a stored scale's bits


def by_block(chunk: Tensor, block: int) -> list[Tensor]:
    """Views [rows, block] of the whole blocks and [1, n] of the last, where there are any."""
    rest = chunk.numel() % block
    whole, last = chunk.split_with_sizes([chunk.numel() - rest, rest])
    return [part.view(-1, n) for part, n in ((whole, block), (last, rest)) if part.numel()]


def join(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The body of what was made of each part of `by_block`: all scales [rows], then all bytes [rows, width]."""
    scales, codes = zip(*parts, strict=True)
    return torch.cat([part.view(torch.uint8).flatten() for part in (*scales, *codes)])


def opened(
    body: Tensor, out: Tensor, block: int, scale: torch.dtype, width: Callable[[int], int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each part of `by_block`: scales [rows, 1] float32, bytes [rows, width(n)], and the part of out [rows, n]."""
    targets = by_block(out, block)
    rows = [len(target) for target in targets]
    widths = [width(target.shape[1]) for target in targets]
    head = sum(rows) * scale.itemsize
    scales = body.narrow(0, 0, head).view(scale).float().split_with_sizes(rows)
    codes = body.narrow(0, head, len(body) - head).split_with_sizes(
        [r * w for r, w in zip(rows, widths, strict=True)]
    )
    for stored, part, target in zip(scales, codes, targets, strict=True):
        yield stored.unsqueeze(1), part.view(len(target), -1), target


def peaks(rows: Tensor) -> Tensor:
    """[rows] int32: the bits of each one's largest magnitude. Infinity is above all numbers, NaN above it."""
    return (rows.view(torch.int32) & 0x7FFFFFFF).amax(1)


def round_scales(exact: Tensor) -> tuple[Tensor, Tensor]:
    """From bits of scales [rows] int32: the stored ones, bits of bfloat16, and reciprocals [rows, 1], 0 for 0."""
    stored = (exact.clamp(max=INFINITE + 0x40 << 16) + 0xFFFF) >> 16
    stored = stored.masked_fill(exact < 0x00800000, 0)
    inverses = (stored << 16).view(torch.float32).reciprocal()
    inverses = inverses.where((stored > 0) & (stored < INFINITE), 0.0)
    return stored.to(torch.int16), inverses.unsqueeze(1)


def quotient(over: Tensor | float, below: Tensor | float, like: Tensor) -> Tensor:
    """The nearest float32, where a tensor divided by a plain number may be off by its last bit on CUDA."""
    over, below = (
        each if isinstance(each, Tensor) else torch.full_like(like, each) for each in (over, below)
    )
    return over / below


def by_lane(codes: Tensor, lanes: int, missing: int) -> Tensor:
    """[rows, lanes, w] of codes [rows, n], w = ceil(n / lanes): the code j + k w of a row is the number j of lane k."""
    rows, n = codes.shape
    width = -(-n // lanes)
    return pad(codes, (0, lanes * width - n), value=missing).view(rows, lanes, width)


def numbers(count: int, like: Tensor) -> Tensor:
    """0, 1, ... [count, 1] of the same type and on the same device."""
    return torch.arange(count, dtype=like.dtype, device=like.device).unsqueeze(1)


def join_bits(bits: Tensor) -> Tensor:
    """[..., w] uint8 of [..., up to 8, w] uint8, 0 or 1 each: the number k is bit k."""
    shifted = bits << numbers(bits.shape[-2], bits)
    return shifted.sum(-2, dtype=torch.uint8)


def split_bits(packed: Tensor) -> Tensor:
    """[..., 8, w] uint8, 0 or 1 each, of [..., w] uint8."""
    return (packed.unsqueeze(-2) >> numbers(8, packed)) & 1
