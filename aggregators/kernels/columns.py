"""W @ X, and one value of each column of X or of W @ X: by machine code where it can be had, else by torch.

A result does not depend on the number of threads, nor on how its columns are cut into calls: every column is
worked out by itself, in the same way. Machine code and torch give the same bytes for a stage of X itself; their
W @ X differ by rounding.
"""

from __future__ import annotations

from ctypes import addressof
from functools import lru_cache

from torch import Tensor

from aggregators.kernels import column_code, native, reference, sum_code
from aggregators.kernels.mixing import Mixing
from aggregators.kernels.stages import Stage
from aggregators.kernels.threads import over_columns

ROWS_MOST = 400  # straight-line code for these takes three seconds to compile


def reduce(X: Tensor, out: Tensor, stage: Stage, mixing: Mixing | None = None) -> None:
    """Writes to `out` [c] the stage's value for each column of `X` [m, c], or of W @ X if there is a `mixing`.

    `X` and `out` do not overlap. Fastest where both are float32 on the CPU and the values of a row of `X` lie
    side by side; any other strides, float types and devices are for torch.
    """
    if not _run(X, out.unsqueeze(0), stage, mixing):
        reference.reduce(X, out, stage, mixing)


def mix(X: Tensor, out: Tensor, mixing: Mixing) -> None:
    """Writes W @ X to `out` [m, c]; `X` [n, c] and `out` as for `reduce`."""
    if not _run(X, out, None, mixing):
        mixing.multiply(X, out)


def _run(X: Tensor, out: Tensor, stage: Stage | None, mixing: Mixing | None) -> bool:
    """Whether a kernel did it."""
    target = native.machine()
    if target is None or not native.suits(X, out) or (mixing is not None and not mixing.used):
        return False
    rows = None if mixing is None else mixing.used
    if mixing is not None and stage is not None and mixing.chosen is not None:
        rows, mixing = mixing.chosen, None  # rows that are only chosen are read where they are
    m = len(out) if stage is None else mixing.m if mixing is not None else len(rows or X)
    columns, width = X.shape[1], column_code.vector(m, stage, target.lanes)
    if m == 1 and stage is None and columns >= sum_code.TILE:
        kernel, width = _sum_kernel(), sum_code.TILE
    else:
        kernel = _kernel(m, stage, mixing is not None)
    if kernel is None:
        return False
    if columns >= width:
        source, result = X, out
    else:
        source, result = X.new_zeros(len(X), width), out.new_empty(len(out), width)
        source[:, :columns] = X
    weights = 0 if mixing is None else mixing.weights.data_ptr()
    sources, targets = native.addresses(source, rows), native.addresses(result)
    fixed = (addressof(sources), len(sources), weights, addressof(targets))
    values = max(len(sources), len(out)) * columns
    over_columns(kernel, fixed, source.shape[1], values, align=width)
    if result is not out:
        out.copy_(result[:, :columns])
    return True


@lru_cache(maxsize=256)
def _kernel(m: int, stage: Stage | None, mixed: bool) -> native.Kernel | None:
    target = native.machine()
    if target is None or m > ROWS_MOST:
        return None
    return native.compiled(column_code.module(m, stage, mixed, target.lanes), arguments=6)


@lru_cache(maxsize=1)
def _sum_kernel() -> native.Kernel | None:
    target = native.machine()
    return None if target is None else native.compiled(sum_code.module(target.lanes), arguments=6)
