"""From the text of an LLVM module to a function that can be called: in this process, in memory, for this CPU.

Compiling takes some 10 ms for 20 rows, 80 for 64 and a second for 256, so nothing is kept on disk: there is no
cache that could be stale, shared by mistake, or written by somebody else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

_compiling = Lock()


@dataclass(frozen=True)
class Machine:
    """The CPU of this process: its vectors hold `lanes` float32 values."""

    name: str
    features: str
    lanes: int


@lru_cache(maxsize=1)
def machine() -> Machine | None:
    """What code can be made for, or None if none can be made."""
    try:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features()
    except (ImportError, OSError, RuntimeError):  # no llvmlite, or not for this CPU: torch does it all
        return None
    if not features.get("fma", True):  # an x86 of before 2013, where each multiply-add would be a call
        return None
    lanes = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
    return Machine(llvm.get_host_cpu_name(), features.flatten(), lanes)


class Kernel:
    """A compiled function, and the engine that owns its memory.

    `call` takes addresses and 64-bit integers as plain integers, and lets other threads run meanwhile.
    """

    def __init__(self, source: str, arguments: int) -> None:
        """Raises `RuntimeError` where the module cannot be compiled."""
        target = machine()
        if target is None:
            raise RuntimeError("there is no code generator for this machine")
        import llvmlite.binding as llvm

        with _compiling:
            module = llvm.parse_assembly(source)
            module.verify()
            # The engine takes the target machine over, so each has its own.
            made: Any = llvm.Target.from_default_triple().create_target_machine(
                cpu=target.name, features=target.features, opt=2, jit=True
            )
            self._engine = llvm.create_mcjit_compiler(module, made)
            self._engine.finalize_object()
            address = self._engine.get_function_address("kernel")
        self.call: Callable[..., None] = ctypes.CFUNCTYPE(None, *([ctypes.c_int64] * arguments))(address)


def compiled(source: str, arguments: int) -> Kernel | None:
    """The kernel, or None for what this machine's code generator cannot do: torch can."""
    try:
        return Kernel(source, arguments)
    except RuntimeError:
        return None


def addresses(X: Tensor, rows: Iterable[int] | None = None) -> ctypes.Array[ctypes.c_int64]:
    """Where the rows of `X` begin, or those that are named, to hand to a kernel while both are held."""
    start, step = X.data_ptr(), X.stride(0) * X.element_size()
    places = [start + row * step for row in (range(len(X)) if rows is None else rows)]
    return (ctypes.c_int64 * len(places))(*places)


def suits(*tensors: Tensor) -> bool:
    """Whether a kernel can work on these: float32 on the CPU, the values of a row side by side."""
    return all(
        each.dtype == torch.float32
        and each.device.type == "cpu"
        and each.numel() > 0
        and (each.stride(-1) == 1 or each.shape[-1] == 1)
        for each in tensors
    )
