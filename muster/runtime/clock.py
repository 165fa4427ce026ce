"""The time of day, as it is stored: the event loop's time and an offset that is fixed once for each loop.

Durations and timers use the loop alone (`loop.time()`, `asyncio.sleep`, `asyncio.timeout`). What is stored and has to
be comparable after a restart, or on another machine, uses `now`. A step of the machine's clock (NTP, an operator)
moves no deadline of a running process. A loop with a time of its own says what its time means: `set_epoch`.
"""

from __future__ import annotations

import asyncio
import time
from weakref import WeakKeyDictionary

_epochs: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()


def now() -> float:
    """Seconds since 1970 (UTC). Never goes back and never jumps while the running loop lives."""
    loop = asyncio.get_running_loop()
    epoch = _epochs.get(loop)
    if epoch is None:
        epoch = _epochs[loop] = time.time() - loop.time()
    return epoch + loop.time()


def set_epoch(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """`now()` is to be `seconds` when the loop's time is 0."""
    _epochs[loop] = seconds
