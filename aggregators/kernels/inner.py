"""Inner products of rows: float32 products, summed in float64 from block to block."""

from __future__ import annotations

import math
from ctypes import addressof
from functools import lru_cache

import torch
from torch import Tensor

from aggregators.kernels import gram_code, native
from aggregators.kernels.threads import over_columns

_SLAB = 1 << 15  # columns whose sum is one float64 matrix: a multiple of the block
_BLOCK = 4_096  # columns of one float32 sum: 256 terms to a lane of 16
_TORCH_BLOCK = 16_384
_SHORTEST = 2.0**-100  # of a row's square within a chunk: those of its digits are far from where float32 ends


def gram(X: Tensor) -> Tensor:
    """[n, n] float64 = X X^T, exactly symmetric, of `X` [n, c] float32 or float64.

    The same on any number of threads and with any strides. A row with a NaN or an infinity, or so large that
    its square overflows, spoils its own row and column and nothing else. A row so short that squares in float32
    would lose its digits is multiplied by a power of two before and divided by it behind; other rows, and what
    they make among themselves, are the same to the last bit whether there is such a row or not.
    """
    found = _gram(X)
    if X.dtype != torch.float32 or not X.shape[1]:
        return found
    short = [row for row in (found.diagonal() < _SHORTEST).nonzero().flatten().tolist() if bool(X[row].any())]
    return _with_short_rows(X, found, short) if short else found


def _with_short_rows(X: Tensor, found: Tensor, short: list[int]) -> Tensor:
    lifted = X.clone(memory_format=torch.contiguous_format)
    factors = torch.ones(len(X), dtype=torch.float64)
    for row in short:
        wide = X[row].to(torch.float64)  # where every float32 is far from the smallest number
        _, exponent = math.frexp(float(wide.abs().max()))
        lifted[row] = (wide * 2.0**-exponent).to(X.dtype)
        factors[row] = 2.0**exponent
    own = _gram(lifted) * factors[:, None] * factors[None, :]
    found[short] = own[short]
    found[:, short] = own[:, short]
    return found


def _gram(X: Tensor) -> Tensor:
    kernel, target = _kernel(), native.machine()
    if kernel is None or target is None or not native.suits(X):
        return _by_torch(X)
    n, columns = X.shape
    whole = columns // target.lanes * target.lanes
    total = torch.zeros(n, n, dtype=torch.float64)
    if whole:
        for partial in _slabs(kernel, target.lanes, X, whole):
            total += partial
    if whole < columns:
        rest = X.new_zeros(n, target.lanes)
        rest[:, : columns - whole] = X[:, whole:]
        for partial in _slabs(kernel, target.lanes, rest, target.lanes):
            total += partial
    return torch.where(_upper(n), total, total.T)


def _slabs(kernel: native.Kernel, lanes: int, X: Tensor, columns: int) -> Tensor:
    """[slabs, n, n]: the upper half holds the products over each slab of the first `columns`."""
    n, side = len(X), gram_code.side(lanes)
    groups = -(-n // side)
    order = groups * side
    partials = torch.zeros(-(-columns // _SLAB), order, order, dtype=torch.float64)
    rows = native.addresses(X, [*range(n), *[n - 1] * (order - n)])

    fixed = (addressof(rows), groups, _BLOCK, partials.data_ptr())
    over_columns(kernel, fixed, columns, n * columns, align=_SLAB)
    return partials[:, :n, :n]


@lru_cache(maxsize=16)
def _upper(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).triu()


def _by_torch(X: Tensor) -> Tensor:
    total = torch.zeros(len(X), len(X), dtype=torch.float64)
    for start in range(0, X.shape[1], _TORCH_BLOCK):
        block = X[:, start : start + _TORCH_BLOCK]
        total += torch.mm(block, block.T).to("cpu", torch.float64)
    return (total + total.T) / 2


@lru_cache(maxsize=1)
def _kernel() -> native.Kernel | None:
    target = native.machine()
    return None if target is None else native.compiled(gram_code.module(target.lanes, _SLAB), arguments=6)
