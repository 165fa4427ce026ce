"""Scratch memory used again and again.

Fresh memory must first be mapped and zeroed by the kernel, page by page, which costs several times more than
the arithmetic of a codec. Each thread has its own, so that codecs need no lock. On devices, torch's allocator
keeps memory itself.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

CPU = torch.device("cpu")


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}


_buffers = _Buffers()


def scratch(name: str, size: int, dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """[size], uninitialised, contiguous; on the CPU the thread's next call with the same name gives the same memory."""
    if device.type != "cpu":
        return torch.empty(size, dtype=dtype, device=device)
    buffer = _buffers.by_name.get(name)
    if buffer is None or buffer.numel() < size:
        buffer = torch.empty(size, dtype=dtype)
        _buffers.by_name[name] = buffer
    return buffer[:size]
