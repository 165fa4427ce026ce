"""The in-memory transport: real protobuf bytes, no socket. Public, for users' own tests.

    transport = MemoryTransport()
    server = await transport.serve("coordinator", routes)
    channel = transport.connect("coordinator")

Addresses are names in a hub, which all transports of one test share. It keeps gRPC's semantics, its traps
included: flow control, the 4 MiB cap, deadlines, and a lost caller that looks to the handler like one that is
done.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from muster.errors import ConfigError, DeadlineError, UnreachableError, VersionError
from muster.transport._dispatch import Dispatcher, parse
from muster.transport._memory_call import Calls, MemoryCall
from muster.transport.base import Encoded, Method, Route
from muster.transport.faults import FaultHook
from muster.transport.handshake import handshake_headers
from muster.transport.limits import Limits
from muster.wire import PROTOCOL_VERSION

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class MemoryHub:
    """The network of a test. `faults` may be set and unset at any time."""

    def __init__(self, *, faults: FaultHook | None = None) -> None:
        self.faults = faults
        self.servers: dict[str, MemoryServer] = {}
        self.calls: Calls = {}  # all that are under way
        self.ports = itertools.count(1)
        self.channels = itertools.count(1)

    def cut(self, name: str) -> None:
        """Breaks every connection of the transport of that name, as when its process dies."""
        for call in list(self.calls):
            if name in (call.caller, call.callee):
                call.break_off("the connection was lost")


class MemoryTransport:
    """See `muster.transport.base.Transport`. An address that ends in ":0" gets a number of its own.

    `name` is whose transport it is, as fault hooks see it; without one a caller is its connection and a callee its
    address.
    """

    def __init__(
        self,
        hub: MemoryHub | None = None,
        *,
        name: str = "",
        limits: Limits | None = None,
        protocol: int = PROTOCOL_VERSION,
    ) -> None:
        self.hub = hub or MemoryHub()
        self._name = name
        self._limits = limits or Limits()
        self._protocol = protocol

    async def serve(self, address: str, routes: Sequence[Route]) -> MemoryServer:
        if address.endswith(":0"):
            address = f"{address[:-2]}:{next(self.hub.ports)}"
        if address in self.hub.servers:
            raise ConfigError(
                "transport.port_in_use",
                f"{address} is in use",
                fix="stop the other server, or choose another address",
            )
        dispatcher = Dispatcher(routes, protocol=self._protocol, limits=self._limits)
        server = MemoryServer(address, dispatcher, self.hub, self._name or address)
        self.hub.servers[address] = server
        return server

    def connect(self, address: str) -> MemoryChannel:
        return MemoryChannel(address, self.hub, handshake_headers(self._protocol), self._name)


class MemoryServer:
    """See `muster.transport.base.Server`; made by `MemoryTransport.serve`."""

    def __init__(self, address: str, dispatcher: Dispatcher, hub: MemoryHub, name: str) -> None:
        self.dispatcher = dispatcher
        self.name = name
        self.calls: Calls = {}
        self._address = address
        self._hub = hub

    @property
    def address(self) -> str:
        return self._address

    async def stop(self, grace_seconds: float) -> None:
        """New calls are refused at once; those under way have `grace_seconds`, then they are broken off."""
        if self._hub.servers.get(self._address) is self:
            del self._hub.servers[self._address]
        tasks = [call.task for call in self.calls]
        if tasks and grace_seconds > 0:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for call in list(self.calls):
            call.break_off("the server was stopped")
        if tasks:
            await asyncio.wait(tasks)


class MemoryChannel:
    """See `muster.transport.base.Channel`; made by `MemoryTransport.connect`."""

    def __init__(self, address: str, hub: MemoryHub, headers: dict[str, str], name: str) -> None:
        self._address = address
        self._hub = hub
        self._headers = headers
        self._connection = f"memory:{next(hub.channels)}"
        self._name = name or self._connection
        self._calls: dict[bool, Calls] = {False: {}, True: {}}  # by `bulk`
        self._closed = False

    async def unary(
        self, method: Method[Request, Response], request: Request, *, timeout_seconds: float
    ) -> Response:
        call = self._call(method)
        try:
            async with asyncio.timeout(timeout_seconds):
                await call.send(request)
                call.requests.end()
                body = await call.receive()
        except TimeoutError:
            raise self._late(method, timeout_seconds) from None
        finally:
            await call.leave()
        if body is None:
            raise call.broken("it gave no answer")
        response: Response = parse(method.response, body)
        return response

    async def stream(
        self,
        method: Method[Request, Response],
        requests: AsyncIterator[Request | Encoded],
        *,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[Response, None]:
        call = self._call(method)
        due = None if timeout_seconds is None else asyncio.get_running_loop().time() + timeout_seconds
        sender = asyncio.create_task(call.send_all(requests))
        try:
            while True:
                # Not around the whole loop: between two messages it is the caller's code that runs.
                async with asyncio.timeout_at(due):
                    body = await call.receive()
                if body is None:
                    return
                yield parse(method.response, body)
        except TimeoutError:
            raise self._late(method, timeout_seconds) from None
        finally:
            sender.cancel()
            await asyncio.wait([sender])
            await call.leave()

    async def close(self) -> None:
        self._closed = True
        for call in [*self._calls[False], *self._calls[True]]:
            call.break_off("this side has closed the channel")

    def _call(self, method: Method[Any, Any]) -> MemoryCall:
        if self._closed:
            raise UnreachableError("transport.closed", f"this side has closed its channel to {self._address}")
        server = self._hub.servers.get(self._address)
        if server is None:
            raise UnreachableError(
                "transport.unreachable",
                f"{self._address} does not answer",
                fix="check that it runs, and that the address is right",
            )
        route = server.dispatcher.routes.get(method.path)
        if route is None:
            raise VersionError(
                "transport.unknown_method",
                f"{self._address} does not know {method.path}",
                fix="check that it is a Muster of the same version that listens there",
            )
        return MemoryCall(
            address=self._address,
            connection=self._connection,
            caller=self._name,
            callee=server.name,
            route=route,
            dispatcher=server.dispatcher,
            headers=self._headers,
            faults=lambda passage: self._hub.faults(passage) if self._hub.faults else None,
            members=(self._calls[method.bulk], server.calls, self._hub.calls),
        )

    def _late(self, method: Method[Any, Any], timeout_seconds: float | None) -> DeadlineError:
        return DeadlineError(
            "transport.deadline", f"{method.name} at {self._address} was not done within {timeout_seconds} s"
        )
