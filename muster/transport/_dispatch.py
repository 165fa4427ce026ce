"""The serving half that both transports share: bytes in, bytes out, and nothing raised but `MusterError`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

from google.protobuf.message import DecodeError, Message

from muster.errors import UnreachableError, UsageError
from muster.transport.base import CallContext, Encoded, Method, Route, StreamHandler, UnaryHandler
from muster.transport.errors import as_muster_error
from muster.transport.handshake import refuse_version


class Dispatcher:
    """Carries each call to its route's handler.

    Above `calls_max` calls at once a call is refused (`transport.busy`); above `bulk_calls_max` bulk calls
    the next waits its turn unread, so that flow control holds its sender. (gRPC's own limit has been seen to
    let calls pass.)
    """

    def __init__(
        self, routes: Sequence[Route], *, protocol: int, calls_max: int, bulk_calls_max: int
    ) -> None:
        self.routes = {route.method.path: route for route in routes}
        self._protocol = protocol
        self._calls_max = calls_max
        self._calls = 0
        self._bulk_turns = asyncio.Semaphore(bulk_calls_max)

    async def answer(self, route: Route, body: bytes, context: CallContext) -> bytes:
        """For a method that streams neither way."""
        method = route.method
        try:
            async with self._admitted(method, context):
                response = await cast("UnaryHandler", route.handle)(decode(method.request, body), context)
                return encode(method.response, response)
        except Exception as error:
            raise as_muster_error(error, method.path) from None

    async def answer_stream(
        self, route: Route, bodies: AsyncIterator[bytes], context: CallContext
    ) -> AsyncGenerator[bytes, None]:
        """For a method that streams on either side."""
        method = route.method
        handle = cast("StreamHandler", route.handle)
        count = 0
        try:
            async with self._admitted(method, context):
                requests = _decoded(method, bodies)
                if not method.client_streams:
                    requests = _one(await _first(method, requests))
                async with aclosing(
                    cast("AsyncGenerator[Any, None]", handle(requests, context))
                ) as responses:
                    async for response in responses:
                        count += 1
                        yield encode(method.response, response)
            _check_count(method, count)
        except Exception as error:
            raise as_muster_error(error, method.path) from None

    @asynccontextmanager
    async def _admitted(self, method: Method[Any, Any], context: CallContext) -> AsyncGenerator[None, None]:
        if refusal := refuse_version(context.headers, self._protocol):
            raise refusal
        if self._calls >= self._calls_max:
            raise UnreachableError(
                "transport.busy",
                f"the server has {self._calls} calls under way, its limit",
                fix="it goes on by itself; if it lasts, run fewer peers per coordinator",
            )
        self._calls += 1
        try:
            if method.bulk:
                async with self._bulk_turns:
                    yield
            else:
                yield
        finally:
            self._calls -= 1


def decode(kind: type[Message], body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise UsageError(
            "transport.malformed_message",
            f"{len(body)} bytes are no {kind.DESCRIPTOR.full_name}",
            cause=str(error),
        ) from None


def encode(kind: type[Message], message: Any) -> bytes:
    if not isinstance(message, (kind, Encoded)):
        raise TypeError(f"expected a {kind.DESCRIPTOR.full_name}, not {type(message).__name__}")
    return message.SerializeToString()


async def _decoded(method: Method[Any, Any], bodies: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
    async for body in bodies:
        yield decode(method.request, body)


def _check_count(method: Method[Any, Any], count: int) -> None:
    if not method.server_streams and count != 1:
        raise RuntimeError(f"the handler of {method.path} gave {count} answers instead of one")


async def _first(method: Method[Any, Any], requests: AsyncGenerator[Any, None]) -> Any:
    async for request in requests:
        return request
    raise UsageError("transport.no_request", f"{method.path} was called without a request")


async def _one(message: Any) -> AsyncGenerator[Any, None]:
    yield message
