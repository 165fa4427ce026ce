"""What every transport does, asserted of both."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from muster.errors import (
    ERROR_CLASSES,
    ConfigError,
    DeadlineError,
    InternalError,
    MusterError,
    TransferError,
    UnreachableError,
    UpdateRejected,
    UsageError,
    VersionError,
)
from muster.transport import Method, Route
from muster.transport.base import MESSAGE_BYTES_MAX
from muster.transport.identity import EVERYBODY
from muster.transport.limits import Limits
from protos.v1.errors_pb2 import ErrorDetail
from protos.v1.tensors_pb2 import Chunk


def chunk(offset: int, size: int = 8) -> Chunk:
    return Chunk(offset=offset, data=bytes([offset % 251]) * size, crc32c=offset)


async def double(request: Chunk, context: Any) -> Chunk:
    return Chunk(offset=request.offset * 2, data=request.data)


async def mirror(requests: Any, context: Any) -> Any:
    async for request in requests:
        yield request


async def count(requests: Any, context: Any) -> Any:
    yield Chunk(offset=len([request async for request in requests]))


async def repeat(requests: Any, context: Any) -> Any:
    request = await anext(requests)
    for offset in range(request.offset):
        yield chunk(offset)


class Held:
    """A handler that answers once, then waits until it is cancelled or let go."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.go = asyncio.Event()

    async def stream(self, requests: Any, context: Any) -> Any:
        self.entered.set()
        try:
            yield chunk(1)
            await self.go.wait()
            yield chunk(2)
        finally:
            self.left.set()

    async def unary(self, request: Chunk, context: Any) -> Chunk:
        self.entered.set()
        try:
            await self.go.wait()
            return request
        finally:
            self.left.set()


async def within(event: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await event.wait()


# -- messages ------------------------------------------------------------------------------------------------


async def test_unary(serve, echo):
    _, channel = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=double))
    assert await channel.unary(echo.unary, chunk(21), timeout_seconds=10) == Chunk(
        offset=42, data=bytes([21]) * 8
    )


@pytest.mark.parametrize("name", ["both", "bulk"])
async def test_messages_keep_their_order_both_ways(serve, echo, send, collect, name):
    method = getattr(echo, name)
    _, channel = await serve(Route(allows=EVERYBODY, method=method, handle=mirror))
    items = [chunk(offset, size=offset * 100) for offset in range(200)]
    assert await collect(channel.stream(method, send(items))) == items


async def test_client_stream_gives_one_answer(serve, echo, send, collect):
    _, channel = await serve(Route(allows=EVERYBODY, method=echo.up, handle=count))
    assert await collect(channel.stream(echo.up, send([chunk(i) for i in range(7)]))) == [Chunk(offset=7)]


async def test_server_stream_takes_one_request(serve, echo, send, collect):
    _, channel = await serve(Route(allows=EVERYBODY, method=echo.down, handle=repeat))
    assert await collect(channel.stream(echo.down, send([chunk(3)]))) == [chunk(0), chunk(1), chunk(2)]


async def test_server_stream_without_a_request_is_refused(serve, echo, send, collect):
    _, channel = await serve(Route(allows=EVERYBODY, method=echo.down, handle=repeat))
    with pytest.raises(UsageError) as caught:
        await collect(channel.stream(echo.down, send([])))
    assert caught.value.id == "transport.no_request"


async def test_many_calls_at_once(serve, echo):
    _, channel = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=double))
    answers = await asyncio.gather(
        *(channel.unary(echo.unary, chunk(i), timeout_seconds=10) for i in range(100))
    )
    assert [answer.offset for answer in answers] == [2 * i for i in range(100)]


async def test_bytes_that_are_no_message_are_refused(serve, echo):
    real = Method(service="muster.test.EchoService", name="Unary", request=ErrorDetail, response=Chunk)
    _, channel = await serve(Route(allows=EVERYBODY, method=real, handle=double))
    with pytest.raises(UsageError) as caught:  # `data` stands where `message` is expected, and is no UTF-8
        await channel.unary(echo.unary, Chunk(data=b"\xff\xfe"), timeout_seconds=10)
    assert caught.value.id == "transport.malformed_message"


async def test_an_unknown_method_is_a_version_error(serve, echo):
    _, channel = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=double))
    with pytest.raises(VersionError) as caught:
        await channel.unary(
            Method(service="muster.test.EchoService", name="Newer", request=Chunk, response=Chunk),
            chunk(1),
            timeout_seconds=10,
        )
    assert caught.value.id == "transport.unknown_method"


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_message_above_the_cap_is_refused(serve, echo, send, collect, direction):
    async def swell(requests: Any, context: Any) -> Any:
        async for request in requests:
            yield Chunk(data=bytes(request.offset))

    _, channel = await serve(Route(allows=EVERYBODY, method=echo.both, handle=swell))
    large = MESSAGE_BYTES_MAX + 1
    request = Chunk(data=bytes(large)) if direction == "up" else Chunk(offset=large)
    with pytest.raises(TransferError) as caught:
        await collect(channel.stream(echo.both, send([request])))
    assert caught.value.id == "transport.message_too_large"
    fits = Chunk(offset=MESSAGE_BYTES_MAX - 100)
    assert len((await collect(channel.stream(echo.both, send([fits]))))[0].data) == fits.offset


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ERROR_CLASSES))
async def test_every_error_arrives_whole(serve, echo, name):
    async def refuse(request: Chunk, context: Any) -> Chunk:
        raise ERROR_CLASSES[name]("a.b", "wörds, with ünicode", cause="why", fix="do", peer="p1", n=3)

    _, channel = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=refuse))
    with pytest.raises(MusterError) as caught:
        await channel.unary(echo.unary, chunk(1), timeout_seconds=10)
    error = caught.value
    assert type(error) is ERROR_CLASSES[name]
    assert (error.id, error.message, error.cause, error.fix) == ("a.b", "wörds, with ünicode", "why", "do")
    assert error.fields == {"peer": "p1", "n": "3"}


async def test_an_error_in_mid_stream_comes_after_the_answers_before_it(serve, echo, send):
    async def twice(requests: Any, context: Any) -> Any:
        yield chunk(1)
        yield chunk(2)
        raise UpdateRejected("update.not_finite", "coordinate 3 is NaN")

    _, channel = await serve(Route(allows=EVERYBODY, method=echo.both, handle=twice))
    got = []
    with pytest.raises(UpdateRejected, match="coordinate 3"):
        async for item in channel.stream(echo.both, send([])):
            got.append(item.offset)
    assert got == [1, 2]


async def test_an_error_in_mid_upload_stops_the_sender(serve, echo):
    async def refuse(requests: Any, context: Any) -> Any:
        await anext(requests)
        raise UpdateRejected("update.oversize", "too much")
        yield

    closed = asyncio.Event()

    async def endless() -> Any:
        try:
            while True:
                yield chunk(0, size=1 << 16)
        finally:
            closed.set()

    _, channel = await serve(Route(allows=EVERYBODY, method=echo.up, handle=refuse))
    with pytest.raises(UpdateRejected, match="too much"):
        async for _ in channel.stream(echo.up, endless()):
            pass
    assert closed.is_set()


@pytest.mark.parametrize("form", ["unary", "both"])
async def test_a_defect_is_logged_here_and_tells_the_caller_nothing(serve, echo, send, collect, form):
    async def fail(request: Chunk, context: Any) -> Chunk:
        raise KeyError("secret-token")

    async def fail_stream(requests: Any, context: Any) -> Any:
        raise KeyError("secret-token")
        yield

    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.unary, handle=fail),
        Route(allows=EVERYBODY, method=echo.both, handle=fail_stream),
    )
    with structlog.testing.capture_logs() as logs, pytest.raises(InternalError) as caught:
        if form == "unary":
            await channel.unary(echo.unary, chunk(1), timeout_seconds=10)
        else:
            await collect(channel.stream(echo.both, send([])))
    error = caught.value
    assert error.id == "internal.error"
    assert "secret" not in f"{error} {error.fields}"
    (entry,) = [entry for entry in logs if entry["event"] == "transport.handler_failed"]
    assert isinstance(entry["exc_info"], KeyError)
    assert entry["exc_info"].__traceback__ is not None
    assert entry["reference"] == error.fields["reference"]


async def test_a_handler_that_gives_no_answer_is_a_defect(serve, echo, send, collect):
    async def silent(requests: Any, context: Any) -> Any:
        return
        yield

    _, channel = await serve(Route(allows=EVERYBODY, method=echo.up, handle=silent))
    with structlog.testing.capture_logs(), pytest.raises(InternalError):
        await collect(channel.stream(echo.up, send([])))


async def test_a_huge_error_is_cut_and_still_itself(serve, echo):
    async def refuse(request: Chunk, context: Any) -> Chunk:
        raise TransferError("a.b", "m" * 100_000, cause="ü" * 100_000, fix="f", trace="t" * 100_000)

    _, channel = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=refuse))
    with pytest.raises(TransferError) as caught:
        await channel.unary(echo.unary, chunk(1), timeout_seconds=10)
    error = caught.value
    assert (error.id, error.fix) == ("a.b", "f")
    assert error.message.startswith("mmm")
    assert error.cause.startswith("üüü")
    assert error.fields["trace"].startswith("ttt")
    assert error.message.endswith("[…]")


async def nothing() -> Any:
    return
    yield


# -- versions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("caller", "upgrade"), [(1, "calling"), (3, "serving")])
async def test_another_protocol_is_refused(make_transport, serve, echo, caller, upgrade):
    server, _ = await serve(
        Route(allows=EVERYBODY, method=echo.unary, handle=double),
        Route(allows=EVERYBODY, method=echo.both, handle=mirror),
        transport=make_transport(protocol=2),
    )
    channel = make_transport(protocol=caller).connect(server.address)
    for call in (
        channel.unary(echo.unary, chunk(1), timeout_seconds=10),
        anext(channel.stream(echo.both, nothing())),
    ):
        with pytest.raises(VersionError) as caught:
            await call
        assert caught.value.id == "transport.protocol_mismatch"
        assert f"speaks protocol {caller}" in caught.value.message
        assert "speaks protocol 2" in caught.value.message
        assert caught.value.fix == f"upgrade Muster on the {upgrade} side"
    await channel.close()


# -- time and loss -------------------------------------------------------------------------------------------


async def test_a_call_ends_at_its_deadline(serve, echo, send, collect):
    held = Held()
    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.unary, handle=held.unary),
        Route(allows=EVERYBODY, method=echo.both, handle=held.stream),
    )
    with pytest.raises(DeadlineError):
        await channel.unary(echo.unary, chunk(1), timeout_seconds=0.5)
    await within(held.left)
    held.left.clear()
    with pytest.raises(DeadlineError):
        await collect(channel.stream(echo.both, send([]), timeout_seconds=0.5))
    await within(held.left)


async def test_nobody_there(make_transport, serve, echo, send, collect):
    server, _ = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=double))
    await server.stop(0)
    channel = make_transport().connect(server.address)
    with pytest.raises(UnreachableError) as caught:
        await channel.unary(echo.unary, chunk(1), timeout_seconds=10)
    assert caught.value.id == "transport.unreachable"
    with pytest.raises(UnreachableError):
        await collect(channel.stream(echo.both, send([])))
    await channel.close()


async def test_a_channel_finds_a_server_that_came_back(make_transport, serve, echo):
    server, channel = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=double))
    await channel.unary(echo.unary, chunk(1), timeout_seconds=10)
    await server.stop(0)
    with pytest.raises(UnreachableError):
        await channel.unary(echo.unary, chunk(1), timeout_seconds=10)
    await serve(Route(allows=EVERYBODY, method=echo.unary, handle=double), address=server.address)
    async with asyncio.timeout(5):
        while True:
            try:
                answer = await channel.unary(echo.unary, chunk(4), timeout_seconds=10)
                break
            except UnreachableError:
                await asyncio.sleep(0.02)
    assert answer.offset == 8


async def test_stop_breaks_what_outlives_its_grace(serve, echo, send):
    held = Held()
    server, channel = await serve(Route(allows=EVERYBODY, method=echo.both, handle=held.stream))
    stream = channel.stream(echo.both, send([]))
    assert await anext(stream) == chunk(1)
    await server.stop(0)
    with pytest.raises(UnreachableError):
        await anext(stream)
    await within(held.left)


async def test_stop_lets_calls_end_within_its_grace(serve, echo):
    held = Held()
    server, channel = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=held.unary))
    call = asyncio.create_task(channel.unary(echo.unary, chunk(5), timeout_seconds=10))
    await within(held.entered)
    stop = asyncio.create_task(server.stop(10))
    await asyncio.sleep(0)
    held.go.set()
    assert await call == chunk(5)
    await stop


async def test_closing_the_iterator_cancels_the_handler(serve, echo, send):
    held = Held()
    _, channel = await serve(Route(allows=EVERYBODY, method=echo.both, handle=held.stream))
    stream = channel.stream(echo.both, send([]))
    await anext(stream)
    await stream.aclose()
    await within(held.left)


async def test_cancelling_a_caller_cancels_the_handler_and_stays_a_cancellation(serve, echo):
    held = Held()
    _, channel = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=held.unary))
    call = asyncio.create_task(channel.unary(echo.unary, chunk(1), timeout_seconds=10))
    await within(held.entered)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await within(held.left)


async def test_what_the_requests_raise_reaches_the_caller(serve, echo):
    came, left = asyncio.Event(), asyncio.Event()

    async def swallow(requests: Any, context: Any) -> Any:
        try:
            async for _ in requests:
                came.set()
            await asyncio.Event().wait()
            yield chunk(0)
        finally:
            left.set()

    async def broken() -> Any:
        yield chunk(1)
        await came.wait()
        raise TransferError("transfer.read_failed", "the disk has gone")

    _, channel = await serve(Route(allows=EVERYBODY, method=echo.up, handle=swallow))
    with pytest.raises(TransferError, match="the disk has gone"):
        async for _ in channel.stream(echo.up, broken()):
            pass
    await within(left)


async def test_a_closed_channel_refuses_and_breaks_what_was_open(serve, echo, send):
    held = Held()
    _, channel = await serve(Route(allows=EVERYBODY, method=echo.both, handle=held.stream))
    stream = channel.stream(echo.both, send([]))
    await anext(stream)
    await channel.close()
    with pytest.raises(UnreachableError):
        await anext(stream)
    await within(held.left)
    with pytest.raises(UnreachableError) as caught:
        await channel.unary(echo.unary, chunk(1), timeout_seconds=10)
    assert caught.value.id == "transport.closed"


# -- bounds --------------------------------------------------------------------------------------------------


async def test_a_receiver_that_stops_holds_its_sender(serve, echo, collect):
    """What the sender is ahead then lies in windows and in the kernel's buffers, which grow with the load."""
    sent = 0
    lead = 0

    async def numbers() -> Any:
        nonlocal sent
        for offset in range(200):
            sent += 1
            yield chunk(offset, size=1 << 20)

    async def stopping(requests: Any, context: Any) -> Any:
        nonlocal lead
        received = 0
        async for _ in requests:
            received += 1
            if received == 10:
                before = -1
                while sent != before:
                    before = sent
                    await asyncio.sleep(0.5)
                lead = sent - received
        yield Chunk(offset=received)

    _, channel = await serve(Route(allows=EVERYBODY, method=echo.up, handle=stopping))
    assert await collect(channel.stream(echo.up, numbers())) == [Chunk(offset=200)]
    assert lead <= 24


async def test_calls_above_the_limit_are_refused(make_transport, serve, echo):
    held = Held()
    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.unary, handle=held.unary),
        transport=make_transport(limits=Limits(calls_max=1)),
    )
    first = asyncio.create_task(channel.unary(echo.unary, chunk(1), timeout_seconds=10))
    await within(held.entered)
    with pytest.raises(UnreachableError) as caught:
        await channel.unary(echo.unary, chunk(2), timeout_seconds=10)
    assert caught.value.id == "transport.busy"
    held.go.set()
    assert await first == chunk(1)
    assert await channel.unary(echo.unary, chunk(3), timeout_seconds=10) == chunk(3)


async def test_bulk_calls_above_the_limit_wait_their_turn_and_control_does_not(
    make_transport, serve, echo, send
):
    held = Held()
    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.bulk, handle=held.stream),
        Route(allows=EVERYBODY, method=echo.unary, handle=double),
        transport=make_transport(limits=Limits(bulk_calls_max=1)),
    )
    first = channel.stream(echo.bulk, send([]))
    await anext(first)
    held.entered.clear()
    second = channel.stream(echo.bulk, send([]))
    waiting = asyncio.create_task(anext(second))
    assert (await channel.unary(echo.unary, chunk(1), timeout_seconds=10)).offset == 2
    assert not held.entered.is_set()
    await first.aclose()
    assert await waiting == chunk(1)
    await second.aclose()


async def test_two_servers_cannot_have_one_address(make_transport, serve, echo):
    server, _ = await serve(Route(allows=EVERYBODY, method=echo.unary, handle=double))
    with pytest.raises(ConfigError) as caught:
        await make_transport().serve(server.address, [])
    assert caught.value.id == "transport.port_in_use"
    assert "another" in caught.value.fix
