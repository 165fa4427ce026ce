"""The production transport: `grpc.aio`, on one event loop, over loopback.

Bulk calls have a connection of their own. A connection that breaks is made again within two seconds of the
other side's return; a frozen one is noticed by keepalive. Plaintext, so for now nothing but this machine's
own addresses is accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from muster.errors import (
    DeadlineError,
    InternalError,
    MusterError,
    TransferError,
    UnreachableError,
    VersionError,
)
from muster.transport._address import join_address, loopback_address
from muster.transport._dispatch import Dispatcher, parse
from muster.transport._grpc_server import STATUS_HEADER, GrpcServer, start_server
from muster.transport._health import Health
from muster.transport._malloc import keep_message_buffers
from muster.transport._options import Keepalive, channel_options, server_options
from muster.transport.base import MESSAGE_BYTES_MAX, Encoded, Method, Route
from muster.transport.errors import unpack_status
from muster.transport.handshake import handshake_headers
from muster.transport.limits import Limits
from muster.wire import PROTOCOL_VERSION

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class GrpcTransport:
    """See `muster.transport.base.Transport`.

    `limits` are the server's; `protocol` is for tests.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        keepalive: Keepalive | None = None,
        protocol: int = PROTOCOL_VERSION,
    ) -> None:
        self._limits = limits or Limits()
        self._keepalive = keepalive or Keepalive()
        self._protocol = protocol
        keep_message_buffers()

    async def serve(self, address: str, routes: Sequence[Route]) -> GrpcServer:
        health = Health(route.method.service for route in routes)
        dispatcher = Dispatcher([*routes, health.route()], protocol=self._protocol, limits=self._limits)
        largest = max((route.method.request_bytes_max for route in routes), default=MESSAGE_BYTES_MAX)
        return await start_server(address, dispatcher, health, server_options(self._keepalive, largest))

    def connect(self, address: str) -> GrpcChannel:
        host, port = loopback_address(address)
        return GrpcChannel(join_address(host, port), self._protocol, channel_options(self._keepalive))


class GrpcChannel:
    """See `muster.transport.base.Channel`; made by `GrpcTransport.connect`."""

    def __init__(self, address: str, protocol: int, options: Sequence[tuple[str, int]]) -> None:
        self._address = address
        self._metadata = tuple(handshake_headers(protocol).items())
        self._options = list(options)
        self._connections: dict[bool, grpc.aio.Channel] = {}  # by `bulk`
        self._callables: dict[str, Any] = {}
        self._closed = False

    async def unary(
        self, method: Method[Request, Response], request: Request, *, timeout_seconds: float
    ) -> Response:
        call = self._callable(method)(
            request.SerializeToString(), timeout=timeout_seconds, metadata=self._metadata
        )
        try:
            body = await call
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, method, timeout_seconds) from None
        except asyncio.CancelledError:
            if _this_task_is_cancelled():
                raise
            raise self._broken(method, "the call was cancelled by the other side") from None
        response: Response = parse(method.response, body)
        return response

    async def stream(
        self,
        method: Method[Request, Response],
        requests: AsyncIterator[Request | Encoded],
        *,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[Response, None]:
        call = self._callable(method)(timeout=timeout_seconds, metadata=self._metadata)
        sender = asyncio.create_task(_send(call, requests))
        try:
            async for body in call:
                yield parse(method.response, body)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, method, timeout_seconds) from None
        except asyncio.CancelledError:
            if _this_task_is_cancelled():
                raise
            if sender.done() and not sender.cancelled() and (failure := sender.exception()):
                raise failure from None  # what the caller's own requests raised
            raise self._broken(method, "the call was cancelled by the other side") from None
        finally:
            call.cancel()
            sender.cancel()
            await asyncio.wait([sender])
            if not sender.cancelled():
                sender.exception()  # seen above, or of no interest since the call had ended before it

    async def close(self) -> None:
        self._closed = True
        connections, self._connections = self._connections, {}
        self._callables.clear()
        for connection in connections.values():
            await connection.close()

    def _callable(self, method: Method[Any, Any]) -> Any:
        if self._closed:
            raise UnreachableError("transport.closed", f"this side has closed its channel to {self._address}")
        if method.path not in self._callables:
            if method.bulk not in self._connections:
                connection = grpc.aio.insecure_channel(self._address, options=self._options)
                self._connections[method.bulk] = connection
            connection = self._connections[method.bulk]
            streams = method.client_streams or method.server_streams
            make = connection.stream_stream if streams else connection.unary_unary
            self._callables[method.path] = make(method.path)
        return self._callables[method.path]

    def _translated(
        self, error: grpc.aio.AioRpcError, method: Method[Any, Any], timeout_seconds: float | None
    ) -> MusterError:
        for key, value in error.trailing_metadata() or ():
            if key == STATUS_HEADER and isinstance(value, bytes) and (told := unpack_status(value)):
                return told
        code, details = error.code(), error.details() or ""
        what = f"{method.name} at {self._address}"
        if code is grpc.StatusCode.UNAVAILABLE:
            return UnreachableError(
                "transport.unreachable",
                f"{self._address} does not answer",
                cause=_in_words(details),
                fix="check that it runs, and that the address is right",
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError("transport.deadline", f"{what} was not done within {timeout_seconds} s")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return VersionError(
                "transport.unknown_method",
                f"{self._address} does not know {method.path}",
                fix="check that it is a Muster of the same version that listens there",
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return TransferError(
                "transport.message_too_large", f"{what} was refused by gRPC's limits", cause=details
            )
        if code in {grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL}:
            return self._broken(method, details)
        return InternalError("transport.unexpected_status", f"{what} ended with {code.name}", cause=details)

    def _broken(self, method: Method[Any, Any], cause: str) -> UnreachableError:
        return UnreachableError(
            "transport.broken", f"{method.name} at {self._address} was broken off", cause=cause
        )


async def _send(call: Any, requests: AsyncIterator[Message | Encoded]) -> None:
    """Writes the requests, then half-closes. What `requests` raises cancels the call and is the task's
    exception; a call that has ended is no error here, since its reader learns why."""
    try:
        await call.wait_for_connection()
        async for request in requests:
            # Not `call.write`: when it meets the end of a call, it overwrites the status that the server gave,
            # and so the reason of a refusal, with "Internal error from Core".
            if not await _sent(call._cython_call.send_serialized_message(request.SerializeToString())):
                return
        await _sent(call._cython_call.send_receive_close())
    except grpc.aio.AioRpcError:
        return
    except Exception:
        call.cancel()
        raise
    finally:
        if close := getattr(requests, "aclose", None):
            with contextlib.suppress(RuntimeError):  # it is running: another task closes it
                await close()


async def _sent(operation: Awaitable[None]) -> bool:
    """False if the call has ended."""
    try:
        await operation
    except (grpc.aio.InternalError, asyncio.InvalidStateError):
        return False
    return True


def _this_task_is_cancelled() -> bool:
    """Tells our own cancellation from gRPC's, which raises the same exception when the other side cancels."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _in_words(details: str) -> str:
    """Why there is no connection, where gRPC's own words would have to be known to be understood."""
    if "Connection refused" in details:
        return "nothing listens there: connection refused"
    if "Failed parsing HTTP/2" in details:
        return "something listens there that is no coordinator: it does not speak HTTP/2"
    return details
