"""Integers and flags of every width as int64, in the same order: what counters travel and are compared as."""

from __future__ import annotations

import torch
from torch import Tensor

_LOWEST = torch.iinfo(torch.int64).min


def widen(values: Tensor) -> Tensor:
    """[c] of any integer dtype or bool, on any device, to int64 [c] on the CPU. The order stays, that of uint64 too."""
    values = values.detach().cpu()
    if values.dtype == torch.uint64:
        return values.contiguous().view(torch.int64) ^ _LOWEST
    return values.to(torch.int64)


def narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """int64 [c] back to the dtype that `widen` had it from; all of them are within `bounds`."""
    if dtype == torch.uint64:
        return (values ^ _LOWEST).view(torch.uint64)
    return values.to(dtype)


def bounds(dtype: torch.dtype) -> tuple[int, int]:
    """The least and the greatest int64 that stands for a value of the dtype."""
    if dtype == torch.bool:
        return 0, 1
    limits = torch.iinfo(torch.int64 if dtype == torch.uint64 else dtype)
    return limits.min, limits.max
