"""How many threads each job of this peer gets.

Training bits may depend on the number of threads. So it is settled at the first job of a round and stays for whatever
is done again in that round; between rounds it follows the neighbours that come and go. `threads` in the peer's config,
or OMP_NUM_THREADS in its environment, settles it for good.
"""

from __future__ import annotations

import os

from muster.runtime import cores
from muster.runtime.cores import Slots
from peer.work.orders import Order, TrainOrder

RUNS_MAX = 64


class Threads:
    """`workers`, which may be set later, are those of this peer that may be at work at once."""

    def __init__(self, *, threads: int | None, slots: Slots) -> None:
        self.workers = 1
        self._fixed = threads or cores.said_threads(os.environ)
        self._slots = slots
        self._settled: dict[str, tuple[int, int]] = {}  # run -> round, threads

    def now(self) -> int:
        if self._fixed is not None:
            return self._fixed
        return cores.share(cores.usable_cores(), max(1, self._slots.count()) * self.workers)

    def of(self, order: Order) -> int:
        if not isinstance(order, TrainOrder):
            return self.now()
        settled, threads = self._settled.pop(order.run_id, (0, 0))
        if settled != order.round:
            threads = self.now()
        self._settled[order.run_id] = (order.round, threads)
        if len(self._settled) > RUNS_MAX:
            del self._settled[next(iter(self._settled))]
        return threads
