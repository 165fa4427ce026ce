"""Batcher's odd-even merge network (K. E. Batcher, "Sorting networks and their applications", AFIPS 1968).

It sorts n values with a fixed sequence of comparators, so that many columns go through it at once: a comparator
is one minimum and one maximum. Walking it backwards from the ranks that are wanted leaves out every comparator,
and every half of one, that none of them depends on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache


def comparators(n: int) -> Iterator[tuple[int, int]]:
    """Batcher's network for n wires: pairs (i, j), i < j, after which wire i holds the lesser value.

    For an n that is no power of two it is the network of the next one without the comparators that touch the
    wires from n on: those would hold +infinity, and a comparator with +infinity above changes nothing.
    """
    size = 1
    while size < n:
        size *= 2
    return (pair for pair in _sorting(0, size) if pair[1] < n)


def _sorting(first: int, count: int) -> Iterator[tuple[int, int]]:
    # One half is finished before the other begins, so that few wires are in use at a time.
    if count > 1:
        half = count // 2
        yield from _sorting(first, half)
        yield from _sorting(first + half, half)
        yield from _merging(first, count, 1)


def _merging(first: int, count: int, step: int) -> Iterator[tuple[int, int]]:
    """Of the wires `first`, `first + step`, ... before `first + count`, whose halves are sorted."""
    end = first + count
    if 2 * step >= count:
        yield first, first + step
        return
    yield from _merging(first, count, 2 * step)
    yield from _merging(first + step, count, 2 * step)
    yield from ((i, i + step) for i in range(first + step, end - step, 2 * step))


@dataclass(frozen=True)
class Comparator:
    """Wires i < j, and which of its two outputs are wanted."""

    i: int
    j: int
    lesser: bool
    greater: bool


@lru_cache(maxsize=256)
def pruned(n: int, low: int, high: int) -> tuple[Comparator, ...]:
    """What of the network for n wires reaches the ranks `low` to `high - 1` (0 is the least), in order."""
    wanted = set(range(low, high))
    kept: list[Comparator] = []
    for i, j in reversed(list(comparators(n))):
        lesser, greater = i in wanted, j in wanted
        if lesser or greater:
            kept.append(Comparator(i, j, lesser, greater))
            wanted |= {i, j}
    return tuple(reversed(kept))


@dataclass(frozen=True)
class Program:
    """Straight-line code for a network whose wires are whole rows.

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

    for kept in pruned(n, low, high):
        i, j = kept.i, kept.j
        a, b = slot_of[i], slot_of[j]
        spent = [slot for slot in (a, b) if slot >= n]
        if kept.lesser and kept.greater:
            slot_of[i] = take()  # the first half must leave both inputs for the second
            steps.append((False, a, b, slot_of[i]))
        free.extend(spent)  # the last reader may write where it reads
        if kept.greater:
            slot_of[j] = take()
            steps.append((True, a, b, slot_of[j]))
        elif kept.lesser:
            slot_of[i] = take()
            steps.append((False, a, b, slot_of[i]))
    return Program(tuple(steps), tuple(slot_of[low:high]), slots - n)
