"""The least that a caller has to send or read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from muster.errors import TransferError
from muster.transport.limits import Limits

Result = TypeVar("Result")


class Pace:
    """One direction of one call. Time in which this side is busy itself does not count against the caller.

    A window ends when its share of the bytes has passed; a caller that makes this side wait for a whole window before
    they have is cut off with `TransferError` "transfer.stalled". Where messages are small, a `whole` one is a share.
    """

    def __init__(self, limits: Limits, doing: str, *, whole: bool = False) -> None:
        self._limits = limits
        self._whole = whole
        self._doing = doing  # "sends", "reads"
        self._waited = 0.0
        self._bytes = 0

    async def wait(self, step: Awaitable[Result]) -> Result:
        clock = asyncio.get_running_loop().time
        began = clock()
        timeout = asyncio.timeout(self._limits.window_seconds - self._waited)
        try:
            async with timeout:
                return await step
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self._stalled() from None
        finally:
            self._waited += clock() - began

    def count(self, size: int) -> None:
        self._bytes += size
        if self._whole or self._bytes >= self._limits.bytes_per_second_min * self._limits.window_seconds:
            self._bytes, self._waited = 0, 0.0

    def _stalled(self) -> TransferError:
        limits = self._limits
        came = f"{self._bytes} bytes in {limits.window_seconds:.0f} s of waiting for it"
        return TransferError(
            "transfer.stalled",
            f"the caller {self._doing} too slowly: {came}",
            cause=f"less than {limits.bytes_per_second_min:.0f} bytes a second would hold up others",
            fix="resume from the offset that is held, in smaller chunks; Muster's peers do so by themselves",
        )
