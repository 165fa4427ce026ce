"""Column ranges on as many threads as torch may use.

The threads are not those of torch's OpenMP team, which wait for each other in a spin: on a machine that has
other work to do, each of its barriers may last tens of milliseconds.
"""

from __future__ import annotations

from _thread import start_new_thread  # Thread.start would wait until a busy machine lets the new thread begin
from threading import Condition

import torch

from aggregators.kernels.native import Kernel

_VALUES_LEAST = 1 << 18  # a thread's start costs some 50 microseconds, as much as so many values
_PIECES = 4  # to a thread, so that one on a busy core does less of them

Fixed = tuple[int, int, int, int]
"""The first four arguments of a kernel."""


def over_columns(kernel: Kernel, fixed: Fixed, columns: int, values: int, *, align: int) -> None:
    """Calls `kernel(*fixed, start, stop)` on ranges that make up 0 to `columns`, here and on others, and waits.

    `values` are read in all. The result must not depend on the ranges, which begin at multiples of `align`;
    none is shorter than that, unless `columns` is.
    """
    threads = min(torch.get_num_threads(), values // _VALUES_LEAST, columns // align)
    if threads <= 1:
        kernel.call(*fixed, 0, columns)
        return
    pieces = min(_PIECES * threads, columns // align)
    bounds = [columns // align * piece // pieces * align for piece in range(pieces)]
    work = _Work(kernel, fixed, list(zip(bounds, [*bounds[1:], columns], strict=True)))
    for _ in range(threads - 1):
        start_new_thread(work.help, ())
    work.help()
    work.wait()


class _Work:
    """Ranges that any thread may take. A helper that comes when none is left is not waited for."""

    def __init__(self, kernel: Kernel, fixed: Fixed, ranges: list[tuple[int, int]]) -> None:
        self._kernel = kernel
        self._fixed = fixed
        self._left = ranges
        self._running = 0
        self._idle = Condition()

    def help(self) -> None:
        while True:
            with self._idle:
                if not self._left:
                    return
                start, stop = self._left.pop()
                self._running += 1
            try:
                self._kernel.call(*self._fixed, start, stop)
            finally:
                with self._idle:
                    self._running -= 1
                    self._idle.notify_all()

    def wait(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: not self._left and not self._running)
