"""Turns of bulk calls, and who loses one while others wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from muster.errors import TransferError
from muster.transport.limits import Limits


class Turn:
    """Of one bulk call: what it has moved, and how long this side has waited for its caller."""

    def __init__(self) -> None:
        self.lost = False
        self._bytes = 0
        self._waited = 0.0
        self._wait: tuple[float, asyncio.Timeout] | None = None

    @contextmanager
    def waiting(self, timeout: asyncio.Timeout) -> Generator[None, None, None]:
        """Around a wait for the caller, which `timeout` ends if the turn is lost meanwhile."""
        clock = asyncio.get_running_loop().time
        began = clock()
        self._wait = (began, timeout)
        try:
            yield
        finally:
            self._wait = None
            self._waited += clock() - began

    def count(self, size: int) -> None:
        self._bytes += size

    def pace(self, now: float, limits: Limits) -> float | None:
        """Bytes a second, if they are fewer than is fair to those who wait; None as long as it may go on. Only one that
        this side waits for at the moment is told so, so that nothing else of it is broken off."""
        if self.lost or self._wait is None:
            return None
        waited = self._waited + now - self._wait[0]
        if waited < limits.turn_seconds:
            return None
        pace = self._bytes / waited
        if pace < limits.turn_bytes_per_second:
            return pace
        # It was fast enough; from here on it is measured anew.
        self._bytes, self._waited = 0, self._wait[0] - now
        return None

    def lose(self, now: float) -> None:
        if self._wait is not None:
            self.lost = True
            self._wait[1].reschedule(now)

    def crowded(self, limits: Limits, doing: str) -> TransferError:
        return TransferError(
            "transfer.crowded",
            f"the caller {doing} too slowly while others wait for their turn",
            cause=f"after {limits.turn_seconds:.0f} s a turn is kept at {limits.turn_bytes_per_second:.0f} bytes a "
            "second or more, or while nobody waits for it",
            fix="resume from the offset that is held; Muster's peers do so by themselves",
        )


class Turns:
    """A bounded number of them; the others wait in order. While any do, the slowest holder that is below the fair pace
    makes room for each."""

    def __init__(self, count: int, limits: Limits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(count)
        self._held: dict[Turn, None] = {}  # in the order in which they came
        self._waiting = 0
        self._watch: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[Turn, None]:
        await self._take()
        turn = Turn()
        self._held[turn] = None
        try:
            yield turn
        finally:
            self._held.pop(turn, None)
            self._free.release()

    async def _take(self) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        self._waiting += 1
        if self._watch is None:
            self._watch = asyncio.create_task(self._make_room())
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._watch.cancel()
                self._watch = None

    async def _make_room(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._limits.turn_seconds / 8)
            now = clock()
            slow = [(pace, turn) for turn in self._held if (pace := turn.pace(now, self._limits)) is not None]
            leaving = sum(turn.lost for turn in self._held)
            for _, turn in sorted(slow, key=lambda each: each[0])[: max(0, self._waiting - leaving)]:
                turn.lose(now)
