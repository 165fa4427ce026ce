"""Where calls wait until their first message is here: before it nobody knows who calls, or what for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from muster.errors import DeadlineError
from muster.transport.limits import Limits


class Entrance:
    """A bounded number of calls is read at once, of each connection and in all. Who says nothing is sent away after
    `first_seconds`, and the sooner the more others wait, so that silence costs the silent."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places = asyncio.Semaphore(limits.first_reads_max)
        self._waiting = 0
        self._connections: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        # The readers' timeouts, oldest first, each with when its reading began; those that were hurried are left out.
        self._patient: dict[asyncio.Timeout, float] = {}

    @asynccontextmanager
    async def place(self, connection: str) -> AsyncGenerator[None, None]:
        """Raises `DeadlineError` "transport.silent" where what is done within takes too long."""
        own = self._connections.get(connection)
        if own is None:
            own = self._connections[connection] = asyncio.Semaphore(
                self._limits.first_reads_of_connection_max
            )
        async with own:
            await self._wait()
            try:
                async with self._reading():
                    yield
            finally:
                self._places.release()

    async def _wait(self) -> None:
        self._waiting += 1
        try:
            if self._places.locked():
                self._hurry_oldest()
            await self._places.acquire()
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def _reading(self) -> AsyncGenerator[None, None]:
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

    def _hurry_oldest(self) -> None:
        """One for each that has to wait."""
        if not self._patient:
            return
        timeout = next(iter(self._patient))
        began = self._patient.pop(timeout)
        now = asyncio.get_running_loop().time()
        timeout.reschedule(max(now, began + self._limits.first_seconds_crowded))
