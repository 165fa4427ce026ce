"""The same stages by torch operations on whole rows: wherever there is no machine code, and what it is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregators.kernels.mixing import Mixing
from aggregators.kernels.network import compile_program
from aggregators.kernels.stages import Middle, Nearest, Stage

_SCRATCH_VALUES = 1 << 18  # 1 MiB of float32: the size of a core's second-level cache
_COLUMNS_LEAST = 1_024  # below, a call costs more than its values
_COLUMNS_MOST = 16_384  # above, torch starts threads, which costs more than it gains


def reduce(X: Tensor, out: Tensor, stage: Stage, mixing: Mixing | None = None) -> None:
    """Writes to `out` [c] the stage's value for each column of `X` [m, c], or of W @ X."""
    m = len(X) if mixing is None else mixing.m
    columns = _SCRATCH_VALUES // (2 * m) // 16 * 16
    columns = min(max(columns, _COLUMNS_LEAST), _COLUMNS_MOST)
    for start in range(0, X.shape[1], columns):
        rows, result = X[:, start : start + columns], out[start : start + columns]
        if mixing is not None:
            source, rows = rows, rows.new_empty(m, rows.shape[1])
            mixing.multiply(source, rows)
        match stage:
            case Middle(low, high):
                _mean(_ranks(rows, low, high), result)
            case Nearest():
                _nearest(rows, result, stage)
            case _:
                torch.sum(rows.sign(), dim=0, out=result).sign_()
                result.masked_fill_(rows.isnan().any(dim=0), torch.nan)  # the sign of NaN is 0 to torch


def _ranks(rows: Tensor, low: int, high: int) -> list[Tensor]:
    """The values of ranks `low` to `high - 1` of each column, ascending."""
    program = compile_program(len(rows), low, high)
    slots = [*rows.unbind(0), *rows.new_empty(program.scratch_rows, rows.shape[1]).unbind(0)]
    for greater, a, b, target in program.steps:
        (torch.maximum if greater else torch.minimum)(slots[a], slots[b], out=slots[target])
    return [slots[slot] for slot in program.results]


def _mean(values: list[Tensor], out: Tensor) -> None:
    torch.add(values[0], 0.0, out=out)  # the sum starts from +0, so that the sign of a zero tells nothing
    for value in values[1:]:
        out.add_(value)
    if len(values) > 1:
        out.div_(len(values))


def _nearest(rows: Tensor, out: Tensor, stage: Nearest) -> None:
    m, keep = len(rows), stage.keep
    ordered = _ranks(rows, 0, m)
    centre = torch.empty_like(ordered[0])
    _mean(ordered[stage.low : stage.high], centre)
    kept = list(ordered[:keep])
    for k in range(m - keep):
        farther = ordered[k + keep] - centre < centre - ordered[k]
        kept[k % keep] = torch.where(farther, ordered[k + keep], kept[k % keep])
    _mean(kept, out)
