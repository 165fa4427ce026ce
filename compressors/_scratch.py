"""Scratch memory used again and again.

Fresh memory must first be mapped and zeroed by the kernel, page by page, which costs several times more than
the arithmetic of a codec. Each thread has its own, so that codecs need no lock.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}


_buffers = _Buffers()


def scratch(name: str, size: int, dtype: torch.dtype) -> Tensor:
    """[size], uninitialised, contiguous; the thread's next call with the same name gives the same memory."""
    buffer = _buffers.by_name.get(name)
    if buffer is None or buffer.numel() < size:
        buffer = torch.empty(size, dtype=dtype)
        _buffers.by_name[name] = buffer
    return buffer[:size]
