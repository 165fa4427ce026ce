"""One direction of a call in memory: a bounded queue of messages with an end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from muster.errors import MusterError


class PipeCutError(Exception):
    """The other end will read nothing more; why is for the call to say."""


class Pipe:
    """For one sender and one receiver, at most `size` messages between them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._messages: deque[bytes] = deque()
        self._ended = False
        self._error: MusterError | None = None
        self._changed = asyncio.Event()

    async def send(self, message: bytes) -> None:
        """Waits while the pipe is full, as flow control does."""
        await self._until(lambda: self._ended or len(self._messages) < self._size)
        if self._ended:
            raise PipeCutError
        self._messages.append(message)
        self._changed.set()

    def end(self, error: MusterError | None = None) -> None:
        """The receiver gets what was sent before, then the end or `error`. A pipe ends once; more has no
        effect."""
        if not self._ended:
            self._ended, self._error = True, error
            self._changed.set()

    def cut(self, error: MusterError | None = None) -> None:
        """Ends at once: what was not received is lost. A pipe that has ended well loses nothing."""
        if not self._ended:
            self._messages.clear()
            self.end(error)

    async def receive(self) -> bytes | None:
        """The next message; None at the end. Raises the error that the pipe ended with."""
        await self._until(lambda: self._ended or bool(self._messages))
        if self._messages:
            self._changed.set()
            return self._messages.popleft()
        if self._error is not None:
            raise self._error
        return None

    async def messages(self) -> AsyncGenerator[bytes, None]:
        while (message := await self.receive()) is not None:
            yield message

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()
