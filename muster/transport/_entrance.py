"""Where calls wait until their first message has arrived: before it, caller and purpose are unknown."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from muster.errors import DeadlineError, UnreachableError
from muster.transport.limits import Limits


class Entrance:
    """A bounded number of calls is read at once, the connections taking turns, so that many calls of one hold up only
    that one's own. Who says nothing is sent away after `first_seconds`, and the sooner the more others wait; where too
    many wait, those of the connection with the most are turned away.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = limits.first_reads_max
        self._reading: Counter[str] = Counter()  # by connection
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = (
            OrderedDict()
        )  # whose turn is next first
        self._waiting = 0
        # The readers' timeouts, oldest first, each with when its reading began; those that were hurried are left out.
        self._patient: dict[asyncio.Timeout, float] = {}

    @asynccontextmanager
    async def place(self, connection: str) -> AsyncGenerator[None, None]:
        """Raises `DeadlineError` "transport.silent" where what is done within takes too long, `UnreachableError`
        "transport.busy"."""
        await self._wait(connection)
        try:
            async with self._timed():
                yield
        finally:
            self._give(connection)

    @asynccontextmanager
    async def _timed(self) -> AsyncGenerator[None, None]:
        limits = self._limits
        timeout = asyncio.timeout(limits.first_seconds_crowded if self._waiting else limits.first_seconds)
        try:
            async with timeout:
                if not self._waiting:
                    self._patient[timeout] = asyncio.get_running_loop().time()
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineError(
                "transport.silent",
                "the call did not say in time what it wants",
                cause=f"the first message has to come within {limits.first_seconds:.0f} s, and sooner while many call",
                fix="call again; if it lasts, the connection is too slow",
            ) from None
        finally:
            self._patient.pop(timeout, None)

    async def _wait(self, connection: str) -> None:
        if connection not in self._queues and self._may_read(connection):
            self._take(connection)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(connection, deque()).append(turn)
        self._waiting += 1
        if self._waiting > self._limits.first_waiting_max:
            self._turn_away()
        if self._free == 0:
            self._hurry_oldest()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._drop(connection, turn)
            elif turn.exception() is None:  # its turn came as it left
                self._give(connection)
            raise

    def _may_read(self, connection: str) -> bool:
        return self._free > 0 and self._reading[connection] < self._limits.first_reads_of_connection_max

    def _take(self, connection: str) -> None:
        self._free -= 1
        self._reading[connection] += 1

    def _give(self, connection: str) -> None:
        self._free += 1
        self._reading[connection] -= 1
        if not self._reading[connection]:
            del self._reading[connection]
        while (following := next(filter(self._may_read, self._queues), None)) is not None:
            turn = self._queues[following][0]
            self._drop(following, turn)
            if following in self._queues:
                self._queues.move_to_end(following)
            self._take(following)
            turn.set_result(None)

    def _turn_away(self) -> None:
        connection = max(self._queues, key=lambda each: len(self._queues[each]))
        turn = self._queues[connection][-1]
        self._drop(connection, turn)
        turn.set_exception(
            UnreachableError(
                "transport.busy",
                f"more than {self._limits.first_waiting_max} calls wait to be read",
                fix="it goes on by itself; if it lasts, see who calls so often",
            )
        )

    def _drop(self, connection: str, turn: asyncio.Future[None]) -> None:
        queue = self._queues[connection]
        queue.remove(turn)
        self._waiting -= 1
        if not queue:
            del self._queues[connection]

    def _hurry_oldest(self) -> None:
        """One for each that has to wait."""
        if not self._patient:
            return
        timeout = next(iter(self._patient))
        began = self._patient.pop(timeout)
        now = asyncio.get_running_loop().time()
        timeout.reschedule(max(now, began + self._limits.first_seconds_crowded))
