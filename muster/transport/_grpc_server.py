"""The gRPC server: routes become generic handlers on raw bytes; the dispatcher does the rest."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio

from muster.errors import ConfigError, MusterError
from muster.transport._address import join_address, loopback_address
from muster.transport._dispatch import Dispatcher
from muster.transport._health import Health
from muster.transport.base import CallContext, Route
from muster.transport.errors import pack_status

Context = grpc.aio.ServicerContext[bytes, bytes]
STATUS_HEADER = "grpc-status-details-bin"


class GrpcServer:
    """See `muster.transport.base.Server`; made by `GrpcTransport.serve`."""

    def __init__(self, server: grpc.aio.Server, dispatcher: Dispatcher, health: Health, address: str) -> None:
        self.dispatcher = dispatcher
        self._server = server
        self._health = health
        self._address = address

    @property
    def address(self) -> str:
        return self._address

    async def stop(self, grace_seconds: float) -> None:
        """New calls are refused at once; those under way have `grace_seconds`, then they are cancelled."""
        self._health.stopping = True
        await self._server.stop(grace_seconds)


async def start_server(
    address: str, dispatcher: Dispatcher, health: Health, options: Sequence[tuple[str, int]]
) -> GrpcServer:
    """Serves the routes at a loopback address. Raises `ConfigError` if it is taken or not allowed."""
    host, port = loopback_address(address)
    server = grpc.aio.server(options=list(options))
    for service in sorted({route.method.service for route in dispatcher.routes.values()}):
        routes = [route for route in dispatcher.routes.values() if route.method.service == service]
        handlers = {route.method.name: _handler(dispatcher, route) for route in routes}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    try:
        bound = server.add_insecure_port(join_address(host, port))
    except RuntimeError as error:
        raise _bind_error(host, port, error) from None
    await server.start()
    return GrpcServer(server, dispatcher, health, join_address(host, bound))


def _handler(dispatcher: Dispatcher, route: Route) -> grpc.RpcMethodHandler[Any, Any]:
    # On the wire a lone message is a stream of one, so one form serves all kinds of methods. It is the one that reads
    # nothing by itself: gRPC would hold the message of any other call before anybody is asked whether it is wanted.
    async def behaviour(bodies: AsyncIterator[bytes], context: Context) -> None:
        call = GrpcCall(bodies, context)
        del bodies, context
        try:
            await dispatcher.serve(route, call)
        finally:
            call.let_go()

    return grpc.stream_stream_rpc_method_handler(behaviour)


class GrpcCall:
    """See `muster.transport._dispatch.ServerCall`."""

    def __init__(self, bodies: AsyncIterator[bytes], context: Context) -> None:
        self.context = _call_context(context)
        self.bodies = _received(bodies)
        self._grpc = context

    def let_go(self) -> None:
        """The call is over. gRPC keeps the exception that a refusal ended it with, which by the frames that it came
        through refers to this: a circle, that would wait for a garbage collection with all that hangs on it."""
        vars(self).clear()

    async def write(self, body: bytes) -> bool:
        try:
            await self._grpc.write(body)
        except (grpc.aio.InternalError, grpc.aio.UsageError):
            return False
        return True

    async def refuse(self, error: MusterError) -> None:
        status = pack_status(error)
        code = grpc.StatusCode[error.status]
        metadata = ((STATUS_HEADER, status.SerializeToString()),)
        await self._grpc.abort(code, status.message, metadata)


async def _received(bodies: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    read = aiter(bodies).__anext__
    with contextlib.suppress(StopAsyncIteration):
        while True:
            yield await read()  # not kept here while the caller is answered
    # A caller that was killed looks like one that is done: the cancellation comes only at the next await.
    # This is that await, so most handlers never see the false end; none may rely on it.
    await asyncio.sleep(0)


def _call_context(context: Context) -> CallContext:
    pairs = context.invocation_metadata() or ()
    headers = {str(key): value for key, value in pairs if isinstance(value, str)}
    return CallContext(address=context.peer().removeprefix("ipv4:").removeprefix("ipv6:"), headers=headers)


def _bind_error(host: str, port: int, error: RuntimeError) -> ConfigError:
    """gRPC only says that it could not bind; the kernel, asked once more, says why."""
    where = join_address(host, port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        try:
            probe.bind((host, port))
        except OSError as reason:
            if reason.errno != errno.EADDRINUSE:
                return ConfigError(
                    "transport.cannot_bind",
                    f"cannot serve at {where}: {reason.strerror}",
                    fix="choose another address or port",
                )
        else:
            return ConfigError("transport.cannot_bind", f"cannot serve at {where}", cause=str(error))
    return ConfigError(
        "transport.port_in_use",
        f"port {port} is in use at {host}",
        cause="another process listens there, perhaps a Muster that is still running",
        fix=f"stop it (ss -ltnp 'sport = :{port}' names it), or choose another port; 0 takes a free one",
    )
