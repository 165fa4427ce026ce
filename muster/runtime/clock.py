"""Time, injected. Decisions take `now` as a number; shells get it here."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch (UTC). Never goes back and never jumps while the process lives."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """Wall time read once at start, then carried by the monotonic clock.

    A step of the machine's clock (NTP, an operator) therefore moves no deadline of a running process.
    """

    def __init__(self) -> None:
        self._origin = time.time() - time.monotonic()

    def now(self) -> float:
        return self._origin + time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
