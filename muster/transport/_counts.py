"""How many calls are under way, and whose: what strangers may take is bounded apart from all else.

Where strangers have all places for streams of a method, which may last for ever, the connection that has the most gives
one up to one that has fewer; among equals who has had its place for the longest, once that is `turn_seconds`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any

from muster.errors import UnreachableError
from muster.transport.base import Method
from muster.transport.limits import Limits


class Place:
    """Of one call."""

    def __init__(self, connection: str = "") -> None:
        self.connection = connection
        self.lost = False
        self._since = 0.0
        self._timeout: asyncio.Timeout | None = None

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        """Around what the call does. Raises `UnreachableError` "transport.made_room"."""
        self._since = asyncio.get_running_loop().time()
        timeout = self._timeout = asyncio.timeout(None)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise UnreachableError(
                "transport.made_room",
                "the call had to make room for those of others",
                cause="all places for such calls are taken",
                fix="it goes on by itself; if it lasts, see who calls so often",
            ) from None
        finally:
            self._timeout = None

    def held_for(self, seconds: float) -> bool:
        return self._timeout is not None and asyncio.get_running_loop().time() - self._since >= seconds

    def lose(self) -> None:
        if self._timeout is not None:
            self.lost = True
            self._timeout.reschedule(asyncio.get_running_loop().time())


class Counts:
    """Places for calls of unknown callers, by method, connection and bytes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._calls = 0
        self._probes = 0
        # Of callers that are not known: those that stream by method, since each may last for ever, the others
        # together as "".
        self._strange: Counter[str] = Counter()
        self._of_connection: Counter[tuple[str, str]] = Counter()
        self._streams: dict[str, dict[Place, None]] = {}  # theirs, by method, in the order in which they came
        self._bytes = 0

    @contextmanager
    def one(
        self, method: Method[Any, Any], *, known: bool, connection: str, size: int
    ) -> Generator[Place, None, None]:
        """Raises `UnreachableError` "transport.busy"."""
        place = Place(connection)
        if method.any_caller:
            kept = self._probe()
        elif known:
            kept = self._known()
        else:
            kept = self._stranger(method, place, size)
        with kept:
            yield place

    @contextmanager
    def _probe(self) -> Generator[None, None, None]:
        if self._probes >= self._limits.probes_max:
            raise _busy(self._probes, "probes")
        self._probes += 1
        try:
            yield
        finally:
            self._probes -= 1

    @contextmanager
    def _known(self) -> Generator[None, None, None]:
        if self._calls >= self._limits.calls_max:
            raise _busy(self._calls, "calls")
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    @contextmanager
    def _stranger(self, method: Method[Any, Any], place: Place, size: int) -> Generator[None, None, None]:
        limits = self._limits
        streams = method.client_streams or method.server_streams
        kind = method.path if streams else ""
        own = (place.connection, kind)
        if self._of_connection[own] >= limits.strange_calls_of_connection_max:
            raise _busy(self._of_connection[own], "calls of this connection")
        full = self._strange[kind] >= self._strange_max(streams=streams)
        if full and not (streams and self._makes_room(kind, place.connection)):
            raise _busy(self._strange[kind], "calls of callers that it does not know")
        if self._bytes and self._bytes + size > limits.strange_bytes_max:
            raise _busy(self._bytes, "bytes of callers that it does not know")
        with self._known(), self._listed(kind, place) if streams else nullcontext():
            self._strange[kind] += 1
            self._of_connection[own] += 1
            self._bytes += size
            try:
                yield
            finally:
                self._strange[kind] -= 1
                self._bytes -= size
                self._of_connection[own] -= 1
                if not self._of_connection[own]:
                    del self._of_connection[own]

    def _strange_max(self, *, streams: bool) -> int:
        return max(1, self._limits.calls_max // (8 if streams else 2))

    @contextmanager
    def _listed(self, kind: str, place: Place) -> Generator[None, None, None]:
        places = self._streams.setdefault(kind, {})
        places[place] = None
        try:
            yield
        finally:
            del places[place]
            if not places:
                del self._streams[kind]

    def _makes_room(self, kind: str, connection: str) -> bool:
        """Whether another connection has given up a place to a call of this one."""
        held = [place for place in self._streams.get(kind, ()) if not place.lost]
        if len(held) < self._strange_max(streams=True):
            return True  # one is leaving
        counts = Counter(place.connection for place in held)
        most = max(counts.values(), default=0)
        own = counts[connection] + 1
        if most < own:
            return False
        theirs = [place for place in held if counts[place.connection] == most]
        place = theirs[-1] if most > own else theirs[0]
        if most == own and not place.held_for(self._limits.turn_seconds):
            return False
        place.lose()
        return place.lost


def _busy(count: int, what: str) -> UnreachableError:
    return UnreachableError(
        "transport.busy",
        f"the server has {count} {what} under way, its limit",
        fix="it goes on by itself; if it lasts, see who calls so often, or run fewer peers per coordinator",
    )
