"""Order statistics of each column, by a sorting network of row-wise minimum and maximum.

Batcher's odd-even merge network (K. E. Batcher, "Sorting networks and their applications", AFIPS 1968) sorts
n values with a fixed sequence of comparators, so whole rows can go through it at once: a comparator is one
`minimum` and one `maximum` of two rows. Walking it backwards from the ranks that are wanted leaves out every
comparator, and every half of one, that none of them depends on. It is exact: the results are the input's own
values, and equal for every order of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_SCRATCH_VALUES = 1 << 18  # 1 MiB of float32: the size of a core's second-level cache
_COLUMNS_LEAST = 1_024  # below, a call costs more than its values
_COLUMNS_MOST = 16_384  # above, torch starts threads, which costs more than it gains


def comparators(n: int) -> Iterator[tuple[int, int]]:
    """Batcher's network for n wires: pairs (i, j), i < j, after which wire i holds the lesser value.

    For an n that is no power of two it is the network of the next one without the comparators that touch the
    wires from n on: those would hold +infinity, and a comparator with +infinity above changes nothing.
    """
    size = 1
    while size < n:
        size *= 2
    run = 1
    while run < size:
        gap = run
        while gap >= 1:
            for first in range(gap % run, size - gap, 2 * gap):
                for i in range(first, min(first + gap, n - gap)):
                    if i // (2 * run) == (i + gap) // (2 * run):
                        yield i, i + gap
            gap //= 2
        run *= 2


@dataclass(frozen=True)
class Program:
    """Straight-line code for one network.

    A step (greater, a, b, target) puts the minimum of slots a and b, or the maximum, in the target slot.
    Slots 0 to n-1 are the input rows, never written; slot n + k is scratch row k. `results` are the slots of
    the wanted ranks, ascending.
    """

    steps: tuple[tuple[bool, int, int, int], ...]
    results: tuple[int, ...]
    scratch_rows: int


@lru_cache(maxsize=256)
def compile_program(n: int, low: int, high: int) -> Program:
    """The code for ranks `low` to `high - 1` (0 is the least) of n rows."""
    wanted = set(range(low, high))
    kept: list[tuple[int, int, bool, bool]] = []
    for i, j in reversed(list(comparators(n))):
        lesser, greater = i in wanted, j in wanted
        if lesser or greater:
            kept.append((i, j, lesser, greater))
            wanted |= {i, j}
    slot_of = list(range(n))
    free: list[int] = []
    slots = n
    steps: list[tuple[bool, int, int, int]] = []

    def take() -> int:
        nonlocal slots
        if free:
            return free.pop()
        slots += 1
        return slots - 1

    for i, j, lesser, greater in reversed(kept):
        a, b = slot_of[i], slot_of[j]
        spent = [slot for slot in (a, b) if slot >= n]
        if lesser and greater:
            slot_of[i] = take()  # the first half must leave both inputs for the second
            steps.append((False, a, b, slot_of[i]))
        free.extend(spent)  # the last reader may write where it reads
        if greater:
            slot_of[j] = take()
            steps.append((True, a, b, slot_of[j]))
        elif lesser:
            slot_of[i] = take()
            steps.append((False, a, b, slot_of[i]))
    return Program(tuple(steps), tuple(slot_of[low:high]), slots - n)


@dataclass(frozen=True)
class MiddleMean:
    """The mean of ranks `low` to `high - 1` of each column of m rows: a trimmed mean, or a median.

    A NaN makes NaN of its own column; infinities are ordered like any value.
    """

    m: int
    low: int
    high: int

    def reduce(self, rows: Tensor, out: Tensor) -> None:
        program = compile_program(self.m, self.low, self.high)
        fitting = _SCRATCH_VALUES // (program.scratch_rows + 1) // 16 * 16
        columns = min(max(fitting, _COLUMNS_LEAST), _COLUMNS_MOST, rows.shape[1])
        room = torch.empty(program.scratch_rows, columns, dtype=rows.dtype, device=rows.device)
        for start in range(0, rows.shape[1], max(columns, 1)):
            block = rows[:, start : start + columns]
            width = block.shape[1]
            self._block(program, block, room[:, :width], out[start : start + width])

    def _block(self, program: Program, rows: Tensor, scratch: Tensor, out: Tensor) -> None:
        slots = [*rows.unbind(0), *scratch.unbind(0)]
        for greater, a, b, target in program.steps:
            (torch.maximum if greater else torch.minimum)(slots[a], slots[b], out=slots[target])
        out.copy_(slots[program.results[0]])
        for slot in program.results[1:]:
            out.add_(slots[slot])
        if len(program.results) > 1:
            out.div_(len(program.results))
