"""A small service of every form, served over either transport."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from muster.transport import Channel, GrpcTransport, MemoryTransport, Method, Route, Server
from muster.transport.memory import MemoryHub
from protos.v1.tensors_pb2 import Chunk


def method(name: str, **options: Any) -> Method[Chunk, Chunk]:
    return Method(service="muster.test.EchoService", name=name, request=Chunk, response=Chunk, **options)


@dataclass(frozen=True)
class Echo:
    """The methods that the tests serve, each with whatever handler a test has in mind."""

    unary = method("Unary")
    up = method("Up", client_streams=True)
    down = method("Down", server_streams=True)
    both = method("Both", client_streams=True, server_streams=True)
    bulk = method("Bulk", client_streams=True, server_streams=True, bulk=True)


class MakeTransport(Protocol):
    def __call__(self, **options: Any) -> GrpcTransport | MemoryTransport: ...


class Serve(Protocol):
    def __call__(
        self, *routes: Route, address: str = ..., transport: GrpcTransport | MemoryTransport | None = ...
    ) -> Awaitable[tuple[Server, Channel]]: ...


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture(params=["grpc", "memory"])
def make_transport(request: pytest.FixtureRequest) -> MakeTransport:
    """Transports that reach each other, with any options."""
    hub = MemoryHub()

    def make(**options: Any) -> GrpcTransport | MemoryTransport:
        return GrpcTransport(**options) if request.param == "grpc" else MemoryTransport(hub, **options)

    return make


@pytest.fixture
async def serve(make_transport: MakeTransport) -> AsyncGenerator[Serve, None]:
    """Serves routes and connects to them; all is closed after the test."""
    async with AsyncExitStack() as stack:

        async def start(
            *routes: Route,
            address: str = "127.0.0.1:0",
            transport: GrpcTransport | MemoryTransport | None = None,
        ) -> tuple[Server, Channel]:
            transport = transport or make_transport()
            server = await transport.serve(address, routes)
            stack.push_async_callback(server.stop, 0)
            channel = transport.connect(server.address)
            stack.push_async_callback(channel.close)
            return server, channel

        yield start


@pytest.fixture
def send() -> Callable[[Sequence[Chunk]], AsyncGenerator[Chunk, None]]:
    async def messages(items: Sequence[Chunk]) -> AsyncGenerator[Chunk, None]:
        for item in items:
            yield item

    return messages


@pytest.fixture
def collect() -> Callable[[AsyncIterator[Chunk]], Awaitable[list[Chunk]]]:
    async def everything(stream: AsyncIterator[Chunk]) -> list[Chunk]:
        return [item async for item in stream]

    return everything
