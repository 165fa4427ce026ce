"""What each codec does, written as one writes it first: whole tensors, torch operations, fresh memory.

Each `encode` makes the tensors that would be sent, `decode` the vector; packed where that is a line or two.
Vectors are a multiple of 2,560 long, so that every block is whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compressors.quantizers.nf4 import Nf4

Parts = tuple[Tensor, ...]
Naive = tuple[Callable[[Tensor], Parts], Callable[[Parts], Tensor]]
WHOLE = 2560


def _cast(dtype: torch.dtype) -> Naive:
    return lambda x: (x.to(dtype),), lambda parts: parts[0].float()


def _scaled(x: Tensor, block: int) -> Parts:
    rows = x.view(-1, block)
    scales = rows.abs().amax(1, keepdim=True).clamp_min(1e-30)
    return rows / scales, scales


def _pairs(codes: Tensor) -> Tensor:
    codes = codes.to(torch.uint8).view(-1, 2)
    return codes[:, 0] | codes[:, 1] << 4


def _halves(packed: Tensor) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), 1)


def _blockwise(
    block: int, to_codes: Callable[[Tensor], Tensor], to_values: Callable[[Tensor], Tensor]
) -> Naive:
    def encode(x: Tensor) -> Parts:
        scaled, scales = _scaled(x, block)
        return to_codes(scaled), scales

    def decode(parts: Parts) -> Tensor:
        codes, scales = parts
        return (to_values(codes).view(-1, block) * scales).view(-1)

    return encode, decode


def _e3m0_codes(y: Tensor) -> Tensor:
    exponents = (y.abs().log2().round() + 7).clamp(0, 7)
    return _pairs(exponents + 8 * (y < 0))


def _e3m0_values(packed: Tensor) -> Tensor:
    codes = _halves(packed).int()
    magnitudes = torch.where(codes & 7 > 0, torch.exp2((codes & 7) - 7.0), 0.0)
    return torch.where(codes & 8 > 0, -magnitudes, magnitudes)


def _nf4() -> Naive:
    levels = torch.tensor(Nf4.levels)
    middles = (levels[1:] + levels[:-1]) / 2
    return _blockwise(
        64, lambda y: _pairs(torch.bucketize(y, middles)), lambda packed: levels[_halves(packed).long()]
    )


def _sign() -> Naive:
    weights = 1 << torch.arange(8, dtype=torch.uint8)

    def encode(x: Tensor) -> Parts:
        bits = ((x < 0).view(-1, 8) * weights).sum(1, dtype=torch.uint8)
        return bits, x.view(-1, 256).abs().mean(1, keepdim=True)

    def decode(parts: Parts) -> Tensor:
        negative = (parts[0][:, None] & weights) > 0
        return ((1 - 2 * negative.float()).view(-1, 256) * parts[1]).view(-1)

    return encode, decode


def _terngrad() -> Naive:
    def codes(y: Tensor) -> Tensor:
        return (y.sign() * (torch.rand_like(y) < y.abs())).to(torch.int8)

    return _blockwise(320, codes, Tensor.float)


def _qsgd(levels: int) -> Naive:
    def encode(x: Tensor) -> Parts:
        rows = x.view(-1, 512)
        norms = rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
        exact = rows.abs() / norms * levels
        return (rows.sign() * (exact + torch.rand_like(exact)).floor()).to(torch.int8), norms / levels

    def decode(parts: Parts) -> Tensor:
        return (parts[0].float() * parts[1]).view(-1)

    return encode, decode


def _natural() -> Naive:
    def encode(x: Tensor) -> Parts:
        exponents = x.abs().log2().floor()
        up = torch.rand_like(x) < x.abs() / torch.exp2(exponents) - 1
        return (exponents + up).clamp(-64, 63).to(torch.int8), x < 0

    def decode(parts: Parts) -> Tensor:
        magnitudes = torch.exp2(parts[0].float())
        return torch.where(parts[1], -magnitudes, magnitudes)

    return encode, decode


def _topk(fraction: float) -> Naive:
    def encode(x: Tensor) -> Parts:
        kept = x.abs().topk(max(1, round(fraction * x.numel()))).indices
        return x[kept], kept.int(), torch.tensor(x.numel())

    def decode(parts: Parts) -> Tensor:
        return torch.zeros(int(parts[2])).index_put_((parts[1].long(),), parts[0])

    return encode, decode


NAIVE: dict[str, Naive] = {
    "identity": (lambda x: (x.clone(),), lambda parts: parts[0].clone()),
    "fp16": _cast(torch.float16),
    "bf16": _cast(torch.bfloat16),
    "int8": _blockwise(256, lambda y: (127 * y).round().to(torch.int8), lambda q: q.float() / 127),
    "int8:stochastic": _blockwise(
        256, lambda y: (127 * y + torch.rand_like(y)).floor().to(torch.int8), lambda q: q.float() / 127
    ),
    "e4m3": _blockwise(256, lambda y: (448 * y).to(torch.float8_e4m3fn), lambda q: q.float() / 448),
    "int4": _blockwise(64, lambda y: _pairs((7 * y).round() + 8), lambda p: (_halves(p).float() - 8) / 7),
    "nf4": _nf4(),
    "e3m0": _blockwise(256, _e3m0_codes, _e3m0_values),
    "qsgd:7": _qsgd(7),
    "natural": _natural(),
    "terngrad": _terngrad(),
    "sign": _sign(),
    "topk:0.01": _topk(0.01),
    "topk:0.001": _topk(0.001),
}
