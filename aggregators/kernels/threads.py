"""Column ranges on as many threads as torch may use."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

import torch

_VALUES_LEAST = 1 << 18  # a thread's start costs some 50 microseconds, as much as so many values


def over_columns(rows: int, columns: int, task: Callable[[int, int], None], align: int = 16) -> None:
    """Calls `task(start, stop)` on ranges that make up 0 to `columns`, each on a thread, and waits.

    `task` must let other threads run, and its result must not depend on where ranges begin. Every range but
    the last begins at a multiple of `align` and none is shorter, unless `columns` is.
    """
    threads = max(1, min(torch.get_num_threads(), rows * columns // _VALUES_LEAST))
    share = max(align, -(-columns // threads) // align * align)
    starts = list(range(0, max(columns - share + 1, 1), share))[:threads]
    ranges = list(zip(starts, [*starts[1:], columns], strict=True))
    failures: list[BaseException] = []

    def run(start: int, stop: int) -> None:
        try:
            task(start, stop)
        except BaseException as failure:
            failures.append(failure)

    others = [Thread(target=run, args=each, daemon=True) for each in ranges[1:]]
    for other in others:
        other.start()
    run(*ranges[0])
    for other in others:
        other.join()
    if failures:
        raise failures[0]
