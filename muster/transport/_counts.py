"""How many calls are under way, and whose: what strangers may take is bounded apart from all else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from muster.errors import UnreachableError
from muster.transport.base import Method
from muster.transport.limits import Limits


class Counts:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._calls = 0
        self._probes = 0
        # Of callers that are not known: those that stream by method, since each may last for ever, the others
        # together as "".
        self._strange: Counter[str] = Counter()
        self._of_connection: Counter[tuple[str, str]] = Counter()
        self._bytes = 0

    @contextmanager
    def one(
        self, method: Method[Any, Any], *, known: bool, connection: str, size: int
    ) -> Generator[None, None, None]:
        """Raises `UnreachableError` "transport.busy"."""
        if method.any_caller:
            kept = self._probe()
        elif known:
            kept = self._known()
        else:
            kept = self._stranger(method, connection, size)
        with kept:
            yield

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
    def _stranger(self, method: Method[Any, Any], connection: str, size: int) -> Generator[None, None, None]:
        limits = self._limits
        streams = method.client_streams or method.server_streams
        kind = method.path if streams else ""
        own = (connection, kind)
        if self._of_connection[own] >= limits.strange_calls_of_connection_max:
            raise _busy(self._of_connection[own], "calls of this connection")
        if self._strange[kind] >= max(1, limits.calls_max // (8 if streams else 2)):
            raise _busy(self._strange[kind], "calls of callers that it does not know")
        if self._bytes and self._bytes + size > limits.strange_bytes_max:
            raise _busy(self._bytes, "bytes of callers that it does not know")
        with self._known():
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


def _busy(count: int, what: str) -> UnreachableError:
    return UnreachableError(
        "transport.busy",
        f"the server has {count} {what} under way, its limit",
        fix="it goes on by itself; if it lasts, see who calls so often, or run fewer peers per coordinator",
    )
