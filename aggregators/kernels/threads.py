"""Column ranges on as many threads as torch may use."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

import torch

_VALUES_LEAST = 1 << 18  # a thread's start costs some 50 microseconds, as much as so many values


def over_columns(columns: int, values: int, task: Callable[[int, int], None], *, align: int) -> None:
    """Calls `task(start, stop)` on ranges that make up 0 to `columns`, each on its own thread, and waits.

    `values` are read in all. The task must let other threads run, and its result must not depend on the
    ranges, which begin at multiples of `align`; none is shorter than that, unless `columns` is.
    """
    threads = max(1, min(torch.get_num_threads(), values // _VALUES_LEAST, columns // align))
    bounds = [columns // align * thread // threads * align for thread in range(threads)]
    ranges = list(zip(bounds, [*bounds[1:], columns], strict=True))
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
