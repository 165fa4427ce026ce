"""What only the gRPC transport does."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from muster.errors import ConfigError, UnreachableError
from muster.transport import GrpcTransport, Route
from muster.transport._dispatch import Dispatcher
from muster.transport._grpc_server import _handler
from muster.transport._malloc import keep_message_buffers
from muster.transport._options import Keepalive, channel_options, server_options
from muster.transport.identity import EVERYBODY
from muster.transport.limits import Limits
from muster.wire import METHODS, UPLOAD_UPDATE
from protos.v1.tensors_pb2 import Chunk
from simulator.proxy import ChaosProxy


@pytest.fixture
def make_transport() -> Any:
    return GrpcTransport


async def address_of_caller(request: Chunk, context: Any) -> Chunk:
    return Chunk(data=context.address.encode())


async def mirror(requests: Any, context: Any) -> Any:
    async for request in requests:
        yield request


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "192.168.1.2:7070", "[2001:db8::1]:7070", "example.org:7070"]
)
async def test_only_loopback_is_served_and_called(address):
    with pytest.raises(ConfigError) as caught:
        await GrpcTransport().serve(address, [])
    assert caught.value.id == "transport.address_not_loopback"
    assert "no identities" in caught.value.cause
    with pytest.raises(ConfigError) as caught:
        GrpcTransport().connect(address)
    assert caught.value.id == "transport.address_not_loopback"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "7070", "[::1]"])
async def test_an_address_needs_a_port(address):
    with pytest.raises(ConfigError) as caught:
        GrpcTransport().connect(address)
    assert caught.value.id == "transport.address_invalid"


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.9.9.9:0", "localhost:0"])
async def test_loopback_addresses_are_served_as_bound(serve, echo, address):
    server, channel = await serve(
        Route(allows=EVERYBODY, method=echo.unary, handle=address_of_caller), address=address
    )
    host, _, port = server.address.rpartition(":")
    assert host == address.split(":", maxsplit=1)[0].replace("localhost", "127.0.0.1")
    assert int(port) > 0
    answer = await channel.unary(echo.unary, Chunk(), timeout_seconds=10)
    assert answer.data.startswith(b"127.0.0.1:")


async def test_bulk_and_control_have_a_connection_each(serve, echo, send):
    async def stream_address(requests: Any, context: Any) -> Any:
        async for _ in requests:
            yield Chunk(data=context.address.encode())

    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.unary, handle=address_of_caller),
        Route(allows=EVERYBODY, method=echo.bulk, handle=stream_address),
        Route(allows=EVERYBODY, method=echo.both, handle=stream_address),
    )
    control = (await channel.unary(echo.unary, Chunk(), timeout_seconds=10)).data
    bulk = (await anext(channel.stream(echo.bulk, send([Chunk()])))).data
    session = (await anext(channel.stream(echo.both, send([Chunk()])))).data
    assert bulk != control == session


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_no_request_is_read_before_somebody_asks_for_it(method):
    """Of a method that takes a lone message gRPC reads it whole, megabytes from anybody, before it asks anyone."""
    route = Route(allows=EVERYBODY, method=method, handle=mirror)
    handler = _handler(Dispatcher([route], protocol=1, limits=Limits()), route)
    assert handler.request_streaming


async def test_health_answers_any_grpc_client_whatever_is_under_way(serve, echo):
    limits = Limits(calls_max=1)
    held = asyncio.Event()

    async def hold(requests: Any, context: Any) -> Any:
        held.set()
        await asyncio.Event().wait()
        yield

    server, channel = await serve(
        Route(allows=EVERYBODY, method=UPLOAD_UPDATE, handle=mirror),
        Route(allows=EVERYBODY, method=echo.both, handle=hold),
        transport=GrpcTransport(limits=limits),
    )
    async with grpc.aio.insecure_channel(server.address) as plain:
        health = health_pb2_grpc.HealthStub(plain)
        for service in ("", "muster.v1.UpdatesService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="muster.v1.Nothing"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        holding = asyncio.create_task(anext(channel.stream(echo.both, nothing())))
        await held.wait()
        with pytest.raises(UnreachableError, match="calls"):
            await anext(channel.stream(echo.both, nothing()))
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        holding.cancel()
        await asyncio.wait({holding})


async def nothing() -> Any:
    return
    yield


async def test_a_caller_that_is_no_muster_is_told_so(serve, echo):
    server, _ = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=address_of_caller))
    async with grpc.aio.insecure_channel(server.address) as plain:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plain.unary_unary(echo.unary.path)(b"", metadata=(("muster-protocol", "one"),))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "transport.protocol_mismatch" in caught.value.details()


@pytest.mark.parametrize("fault", ["freeze", "halve"])
async def test_a_silent_connection_is_noticed_by_keepalive(echo, send, fault):
    """A frozen machine, a pulled cable: no FIN, no RST, only silence."""
    keepalive = Keepalive(idle_seconds=0.3, timeout_seconds=0.5)
    server = await GrpcTransport().serve(
        "127.0.0.1:0", [Route(allows=EVERYBODY, method=echo.both, handle=forever)]
    )
    async with ChaosProxy(server.address) as proxy:
        channel = GrpcTransport(keepalive=keepalive).connect(proxy.address)
        stream = channel.stream(echo.both, send([]))
        await anext(stream)
        started = time.monotonic()
        getattr(proxy, fault)()
        with pytest.raises(UnreachableError):
            await anext(stream)
        assert time.monotonic() - started < 10  # gRPC's default takes 60
        await channel.close()
    await server.stop(0)


async def test_a_quiet_session_outlives_its_pings(echo, send):
    """A server that punishes pings ends a quiet connection at the third, and the core sends one a second at most."""
    server = await GrpcTransport().serve(
        "127.0.0.1:0", [Route(allows=EVERYBODY, method=echo.both, handle=forever)]
    )
    pinging = Keepalive(idle_seconds=0.1, timeout_seconds=5.0)
    channel = GrpcTransport(keepalive=pinging).connect(server.address)
    stream = channel.stream(echo.both, send([]))
    await anext(stream)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3.5):
            await anext(stream)
    await channel.close()
    await server.stop(0)


def test_every_argument_that_is_set_is_one_that_the_core_knows():
    """It ignores all others in silence, and with them whatever they were meant to guard against."""
    core = Path(cygrpc.__file__).read_bytes()
    keepalive = Keepalive()
    ours = {name for name, _ in [*server_options(keepalive), *channel_options(keepalive)]}
    assert "grpc.keepalive_time_ms" in ours
    assert {name for name in ours if name.encode() + b"\0" not in core} == set()


async def forever(requests: Any, context: Any) -> Any:
    yield Chunk()
    await asyncio.Event().wait()


async def test_a_cut_connection_is_made_again_at_once(serve, echo):
    server, _ = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=address_of_caller))
    async with ChaosProxy(server.address) as proxy:
        channel = GrpcTransport().connect(proxy.address)
        await channel.unary(echo.unary, Chunk(), timeout_seconds=10)
        for _ in range(3):
            assert proxy.cut() == 1
            async with asyncio.timeout(10):
                while True:
                    try:
                        await channel.unary(echo.unary, Chunk(), timeout_seconds=10)
                        break
                    except UnreachableError:
                        await asyncio.sleep(0.01)
        await channel.close()


KILLED = """
    import asyncio, sys
    from muster.transport import GrpcTransport, Method
    from protos.v1.tensors_pb2 import Chunk

    up = Method(service="muster.test.EchoService", name="Up", request=Chunk, response=Chunk, client_streams=True)

    async def requests():
        for offset in range(3):
            yield Chunk(offset=offset, data=bytes(1 << 20))
        await asyncio.sleep(60)

    async def main():
        async for _ in GrpcTransport().connect(sys.argv[1]).stream(up, requests()):
            pass

    asyncio.run(main())
"""


async def test_a_killed_caller_leaves_no_handler_behind(echo):
    """Whether its stream seems to end or not: the handler is let go, and no answer of it counts."""
    received = 0
    third, left = asyncio.Event(), asyncio.Event()

    async def count(requests: Any, context: Any) -> Any:
        nonlocal received
        try:
            async for _ in requests:
                received += 1
                if received == 3:
                    third.set()
            yield Chunk(offset=received)
        finally:
            left.set()

    server = await GrpcTransport().serve(
        "127.0.0.1:0", [Route(allows=EVERYBODY, method=echo.up, handle=count)]
    )
    caller = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), server.address])  # noqa: ASYNC220
    try:
        async with asyncio.timeout(30):
            await third.wait()
            caller.send_signal(signal.SIGKILL)
            await left.wait()
    finally:
        caller.kill()
        caller.wait()
    assert received == 3
    await server.stop(0)


def test_malloc_keeps_message_buffers_where_it_can():
    assert keep_message_buffers() is (sys.platform == "linux")
