"""Running a coroutine so that Ctrl-C always ends it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`, with an interrupt that wakes the event loop. Raises `KeyboardInterrupt`.

    asyncio's own handler counts on the signal breaking off the wait for events: one that comes in the moment
    before that wait begins is not heard before there is an event, and a quiet stream may have none for hours.
    """
    interrupted = False

    async def main() -> Result:
        task = asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
