"""An event loop whose time costs nothing: where nothing is ready it jumps to the next timer.

    run(main(), seed=7)        # as asyncio.run; an hour of sleeping is over at once

Work for executors runs in the loop's own thread: the calls of one executor in their order, and which executor's
turn it is comes from the seed. There are no sockets, signals, subprocesses or threads, so the same coroutine with
the same seed takes the same steps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

from muster.runtime.clock import set_epoch
from muster.seeds import derive_random

EPOCH_SECONDS = 1_700_000_000.0  # what `muster.runtime.clock.now()` is at the loop's time 0
_RESOLUTION_SECONDS = 1e-6  # timers that are no farther apart ring together

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class StalledError(RuntimeError):
    """Nothing is ready and no timer is set: what is waited for can never come."""


class VirtualLoop(asyncio.BaseEventLoop):
    """`epoch_seconds` is the time of day at which it begins. Blocking calls that run in an executor, and callbacks,
    take no time.

    `run_until_complete` raises `StalledError` where the program waits for what cannot come.
    """

    def __init__(self, seed: int = 0, *, epoch_seconds: float = EPOCH_SECONDS) -> None:
        super().__init__()
        self.seed = seed
        self._time = 0.0
        self._clock_resolution = _RESOLUTION_SECONDS
        self._selector = self  # the base class waits by `select`
        self._random = derive_random(seed, "simulator.executors")
        self._waiting: list[Executor | None] = []  # executors with work, as it came
        self._work: dict[Executor | None, deque[Callable[[], None]]] = {}
        set_epoch(self, epoch_seconds)

    def time(self) -> float:
        return self._time

    def select(self, timeout: float | None) -> list[Any]:
        """No event ever comes from outside: lets the time pass."""
        if timeout is None:
            told = ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self)))
            raise StalledError(f"nothing is ready and no timer is set; these tasks wait: {told}")
        self._time += timeout
        return []

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*Arguments], Result],
        *args: *Arguments,
    ) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # as an executor's thread hands it on
                future.set_exception(error)
            else:
                future.set_result(result)

        if executor not in self._work:
            self._work[executor] = deque()
            self._waiting.append(executor)
        self._work[executor].append(work)
        self.call_soon(self._work_one)
        return future

    def _work_one(self) -> None:
        at = self._random.randrange(len(self._waiting))
        executor = self._waiting[at]
        queue = self._work[executor]
        work = queue.popleft()
        if not queue:
            del self._work[executor]
            self._waiting[at] = self._waiting[-1]
            self._waiting.pop()
        work()

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass  # it never blocks, so nothing has to wake it


def run(main: Coroutine[Any, Any, Result], *, seed: int = 0) -> Result:
    """As `asyncio.run`, on a `VirtualLoop`."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed)) as runner:
        return runner.run(main)
