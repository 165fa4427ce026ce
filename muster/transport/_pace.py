"""The least that a caller has to send or read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import nullcontext
from typing import TypeVar

from muster.errors import TransferError
from muster.transport._turns import Turn
from muster.transport.limits import Limits

Result = TypeVar("Result")


class Pace:
    """One direction of one call. Time in which this side is busy itself does not count against the caller.

    A window ends when its share of the bytes has passed; a caller that makes this side wait for a whole window before
    they have is cut off with `TransferError` "transfer.stalled", and one that loses its `turn` with "transfer.crowded".
    Where messages are small, a `whole` one is a share.
    """

    def __init__(self, limits: Limits, doing: str, *, whole: bool = False, turn: Turn | None = None) -> None:
        self._limits = limits
        self._whole = whole
        self._turn = turn
        self._doing = doing  # "sends", "reads"
        self._waited = 0.0
        self._bytes = 0

    async def wait(self, step: Awaitable[Result]) -> Result:
        clock = asyncio.get_running_loop().time
        began = clock()
        timeout = asyncio.timeout(self._limits.window_seconds - self._waited)
        try:
            async with timeout:
                with self._turn.waiting(timeout) if self._turn is not None else nullcontext():
                    return await step
        except TimeoutError:
            if not timeout.expired():
                raise
            if self._turn is not None and self._turn.lost:
                raise self._turn.crowded(self._limits, self._doing) from None
            raise self._stalled() from None
        finally:
            self._waited += clock() - began

    def count(self, size: int) -> None:
        if self._turn is not None:
            self._turn.count(size)
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
