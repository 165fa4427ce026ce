"""One value of each column of a matrix, by machine code where it can be had."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from aggregators.kernels import code, native, reference
from aggregators.kernels.stages import Stage
from aggregators.kernels.threads import over_columns

_PADDED = 16  # the widest vector
ROWS_MOST = 256  # above, straight-line code takes seconds to compile


def reduce(X: Tensor, out: Tensor, stage: Stage) -> None:
    """Writes to `out` [c] the stage's value for each column of `X` [m, c], which stays as it is."""
    kernel = _kernel(len(X), stage) if _suits(X, out) else None
    if kernel is None:
        reference.reduce(X, out, stage)
        return
    run(kernel, X, out)


def prepare(m: int, stage: Stage) -> bool:
    """Compiles ahead what `reduce` needs for m rows, on any thread; False if torch will do the work."""
    return _kernel(m, stage) is not None


def run(kernel: native.Kernel, X: Tensor, out: Tensor) -> None:
    m, columns = X.shape
    if columns < _PADDED:
        padded = X.new_zeros(m, _PADDED)
        padded[:, :columns] = X
        result = out.new_empty(_PADDED)
        run(kernel, padded, result)
        out.copy_(result[:columns])
        return
    step = X.stride(0) * X.element_size()
    addresses = (ctypes.c_void_p * m)(*(X.data_ptr() + row * step for row in range(m)))
    first, target = ctypes.addressof(addresses), out.data_ptr()
    over_columns(m, columns, lambda start, stop: kernel.call(first, target, start, stop))


def _suits(X: Tensor, out: Tensor) -> bool:
    return (
        X.dtype == out.dtype == torch.float32
        and X.device.type == out.device.type == "cpu"
        and X.shape[1] > 0
        and X.stride(1) == 1
        and out.stride(0) == 1
    )


@lru_cache(maxsize=256)
def _kernel(m: int, stage: Stage) -> native.Kernel | None:
    target = native.machine()
    if target is None or m > ROWS_MOST:
        return None
    try:
        return native.Kernel(code.reduction(m, stage, target.lanes), arguments=4)
    except RuntimeError:  # what this machine's code generator cannot do, torch can
        return None
