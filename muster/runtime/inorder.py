"""A function of every number below a count, on as many threads as torch may use, and its results in order.

It pays where the function lets go of the interpreter's lock for long: a compiled loop, zstd, a file. Threads that come
back to the lock every 50 microseconds stand in each other's way, and two are then as quick as one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

THREADS_MAX = 8  # each has its own memory, and shares the interpreter's lock with the others
AHEAD = 2  # numbers to a thread that are under way or done, besides the one whose result is in use

R = TypeVar("R")


def in_order(function: Callable[[int], R], count: int, threads: int | None = None) -> Generator[R]:
    """`function(0)`, `function(1)` and so on, each called once; what one of them raises is raised in its place.

    Nothing is called more than `AHEAD` numbers for each thread before its result is asked for. However it ends, all
    results taken, an error or `close`, no call is under way then and no thread is left. With one thread, or one number,
    it is `map`: no thread is started. `threads`: as many, instead of torch's own number
    or `THREADS_MAX`, whichever is less.

    In its threads a torch operation runs on one thread.
    """
    threads = min(min(THREADS_MAX, torch.get_num_threads()) if threads is None else threads, count)
    if threads <= 1:
        yield from map(function, range(count))
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="in-order") as pool:
        _settle(pool, threads)
        ahead: deque[Future[R]] = deque()
        try:
            for number in range(count):
                if len(ahead) == AHEAD * threads:
                    yield ahead.popleft().result()
                ahead.append(pool.submit(function, number))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _settle(pool: ThreadPoolExecutor, threads: int) -> None:
    """Starts all its threads. Each keeps the number of threads that torch has when it first asks for it."""
    met = Barrier(threads)

    def ask() -> None:
        torch.get_num_threads()
        met.wait()

    here = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for started in [pool.submit(ask) for _ in range(threads)]:
            started.result()
    finally:
        met.abort()  # where one could not be started, the others would wait for it for ever
        torch.set_num_threads(here)
