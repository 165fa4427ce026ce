"""A hostile or careless caller costs itself only: what a server bears of strangers, of one caller, of slow ones."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import pytest

from muster.errors import AuthenticationError, DeadlineError, TransferError, UnreachableError, UsageError
from muster.transport import Channel, Route
from muster.transport.identity import ANONYMOUS, EVERYBODY, Identity
from muster.transport.limits import Limits
from protos.v1.tensors_pb2 import Chunk

LARGE = Chunk(data=bytes(1 << 20))


def named(name: str) -> Chunk:
    return Chunk(data=name.encode())


def caller(first: Chunk) -> Identity:
    if first.data.startswith(b"stranger"):
        raise AuthenticationError("peer.unknown", "nobody knows the caller")
    name = first.data.decode()
    return Identity.peer(name) if name else ANONYMOUS


async def mirror(requests: Any, context: Any) -> Any:
    async for request in requests:
        yield request


async def flood(requests: Any, context: Any) -> Any:
    async for _ in requests:
        while True:
            yield LARGE


async def says(*messages: Chunk, then_waits: bool = True) -> AsyncGenerator[Chunk, None]:
    for message in messages:
        yield message
    if then_waits:
        await asyncio.Event().wait()


class Caller:
    """One call in the background."""

    def __init__(self, channel: Channel, method: Any, requests: AsyncGenerator[Chunk, None]) -> None:
        self.stream = channel.stream(method, requests)
        self.heard: asyncio.Queue[Chunk] = asyncio.Queue()
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for item in self.stream:
            self.heard.put_nowait(item)

    async def hear(self) -> Chunk:
        async with asyncio.timeout(10):
            return await self.heard.get()

    async def ends(self) -> None:
        """Raises what it ends with."""
        async with asyncio.timeout(10):
            await self.task

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what a server counts tells no event
            await asyncio.sleep(0.005)


def being_read(server: Any) -> int:
    return sum(server.dispatcher._entrance._reading.values())


def under_way(server: Any) -> int:
    return server.dispatcher._counts._calls


async def test_the_silent_and_the_unknown_hold_no_turn(make_transport, serve, echo, send, collect):
    limits = Limits(bulk_calls_max=1)
    server, channel = await serve(
        Route(allows=EVERYBODY, method=echo.bulk, handle=mirror, identify=caller),
        transport=make_transport(limits=limits),
    )
    silent = [Caller(channel, echo.bulk, says()) for _ in range(8)]
    await until(lambda: being_read(server) == 8)
    for _ in range(3):
        with pytest.raises(AuthenticationError):
            await collect(channel.stream(echo.bulk, says(named("stranger"))))
    async with asyncio.timeout(10):
        assert await collect(channel.stream(echo.bulk, send([named("ward")]))) == [named("ward")]
    for each in silent:
        await each.leave()


async def test_one_caller_cannot_take_every_turn(make_transport, serve, echo):
    limits = Limits(bulk_calls_max=2, bulk_calls_of_caller_max=1)
    server, channel = await serve(
        Route(allows=EVERYBODY, method=echo.bulk, handle=mirror, identify=caller),
        transport=make_transport(limits=limits),
    )
    first = Caller(channel, echo.bulk, says(named("greedy")))
    await first.hear()
    more = [Caller(channel, echo.bulk, says(named("greedy"))) for _ in range(4)]
    await until(lambda: under_way(server) == 5)
    other = Caller(channel, echo.bulk, says(named("ward")))
    await other.hear()
    assert all(each.heard.empty() for each in more)
    await first.leave()
    _, pending = await asyncio.wait(
        [asyncio.create_task(each.hear()) for each in more], return_when=asyncio.FIRST_COMPLETED
    )
    for task in pending:
        task.cancel()
    for each in (other, *more):
        await each.leave()


async def test_a_call_says_in_time_what_it_wants(make_transport, serve, echo):
    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.both, handle=mirror),
        transport=make_transport(limits=Limits(first_seconds=0.05)),
    )
    with pytest.raises(DeadlineError) as caught:
        await Caller(channel, echo.both, says()).ends()
    assert caught.value.id == "transport.silent"
    session = Caller(channel, echo.both, says(Chunk(offset=1)))  # one that has spoken may be quiet
    await session.hear()
    await asyncio.sleep(0.1)
    assert not session.task.done()
    await session.leave()


async def test_who_says_nothing_makes_room_for_who_waits(make_transport, serve, echo):
    limits = Limits(first_reads_max=1, first_seconds=600.0, first_seconds_crowded=0.01)
    server, channel = await serve(
        Route(allows=EVERYBODY, method=echo.both, handle=mirror),
        Route(allows=EVERYBODY, method=echo.unary, handle=answer),
        transport=make_transport(limits=limits),
    )
    silent = [Caller(channel, echo.both, says()) for _ in range(3)]
    await until(lambda: being_read(server) == 1)
    assert await channel.unary(echo.unary, Chunk(offset=7), timeout_seconds=10) == Chunk(offset=7)
    with pytest.raises(DeadlineError):
        await silent[0].ends()
    for each in silent:
        await each.leave()


async def test_the_connections_take_turns_at_the_entrance(make_transport, serve, echo):
    limits = Limits(first_reads_max=2, first_seconds=600.0, first_seconds_crowded=0.5, first_waiting_max=40)
    server, channel = await serve(
        Route(allows=EVERYBODY, method=echo.both, handle=mirror),
        Route(allows=EVERYBODY, method=echo.unary, handle=answer),
        transport=make_transport(limits=limits),
    )
    silent = [Caller(channel, echo.both, says()) for _ in range(60)]  # of one connection: more than may wait

    def turned_away() -> int:
        ended = [each.task.exception() for each in silent if each.task.done()]
        return sum("wait to be read" in str(error) for error in ended)

    await until(lambda: turned_away() >= 10)
    other = make_transport().connect(server.address)
    # Its turn comes next, not after all of those, which would take ten seconds.
    assert await other.unary(echo.unary, Chunk(offset=7), timeout_seconds=5) == Chunk(offset=7)
    for each in silent:
        await each.leave()
    await other.close()


async def test_strangers_leave_room_for_known_callers(make_transport, serve, echo):
    limits = Limits(calls_max=16)
    _, channel = await serve(
        Route(allows=EVERYBODY, method=replace(echo.both, name="Watch"), handle=mirror),
        Route(allows=EVERYBODY, method=echo.both, handle=mirror, identify=caller),
        transport=make_transport(limits=limits),
    )
    watchers = [Caller(channel, replace(echo.both, name="Watch"), says(Chunk())) for _ in range(2)]
    for each in watchers:
        await each.hear()
    with pytest.raises(UnreachableError) as caught:
        await Caller(channel, replace(echo.both, name="Watch"), says(Chunk())).ends()
    assert "does not know" in caught.value.message
    known = Caller(channel, echo.both, says(named("ward")))
    await known.hear()
    for each in (*watchers, known):
        await each.leave()


async def answer(request: Chunk, context: Any) -> Chunk:
    return request


async def test_strangers_streams_are_bounded_by_method_and_by_connection(make_transport, serve, echo):
    watch, pull = replace(echo.both, name="Watch"), replace(echo.both, name="Pull")
    limits = Limits(calls_max=16, strange_calls_of_connection_max=1)  # two of each method
    server, channel = await serve(
        Route(allows=EVERYBODY, method=watch, handle=mirror),
        Route(allows=EVERYBODY, method=pull, handle=mirror),
        transport=make_transport(limits=limits),
    )
    others = [make_transport().connect(server.address) for _ in range(2)]
    held = [Caller(channel, watch, says(Chunk()))]
    await held[0].hear()
    with pytest.raises(UnreachableError, match="calls of this connection"):
        await Caller(channel, watch, says(Chunk())).ends()
    held += [Caller(others[0], watch, says(Chunk())), Caller(channel, pull, says(Chunk()))]
    for each in held[1:]:
        await each.hear()
    with pytest.raises(UnreachableError, match="calls of callers that it does not know"):
        await Caller(others[1], watch, says(Chunk())).ends()
    last = Caller(others[1], pull, says(Chunk()))  # whatever is watched, models are pulled
    await last.hear()
    for each in (*held, last):
        await each.leave()
    await until(lambda: under_way(server) == 0)
    assert not server.dispatcher._counts._of_connection
    for other in others:
        await other.close()


async def test_the_connection_with_the_most_streams_makes_room(make_transport, serve, echo):
    limits = Limits(calls_max=16, strange_calls_of_connection_max=2, turn_seconds=0.3)  # two of a method
    server, channel = await serve(
        Route(allows=EVERYBODY, method=echo.both, handle=mirror), transport=make_transport(limits=limits)
    )
    others = [make_transport().connect(server.address) for _ in range(2)]
    first, second = [Caller(channel, echo.both, says(Chunk())) for _ in range(2)]
    await first.hear()
    await second.hear()
    honest = Caller(others[0], echo.both, says(Chunk()))
    await honest.hear()
    ended, _ = await asyncio.wait([first.task, second.task], return_when=asyncio.FIRST_COMPLETED, timeout=10)
    (error,) = [each.exception() for each in ended]
    assert isinstance(error, UnreachableError) and error.id == "transport.made_room"
    # Now both have one. A third has to wait, and then the one that has been there for the longest makes room.
    with pytest.raises(UnreachableError, match="calls of callers that it does not know"):
        await Caller(others[1], echo.both, says(Chunk())).ends()
    await asyncio.sleep(limits.turn_seconds)
    third = Caller(others[1], echo.both, says(Chunk()))
    await third.hear()
    assert not honest.task.done()
    with pytest.raises(UnreachableError, match="make room"):
        await (first if second.task in ended else second).ends()
    for each in (honest, third):
        await each.leave()
    await until(lambda: under_way(server) == 0)
    assert not server.dispatcher._counts._streams
    for other in others:
        await other.close()


async def test_what_strangers_send_is_bounded_while_it_is_answered(make_transport, serve, echo):
    slow = replace(echo.unary, name="Slow")
    arrived, done = asyncio.Event(), asyncio.Event()

    async def hang(request: Chunk, context: Any) -> Chunk:
        arrived.set()
        await done.wait()
        return request

    server, channel = await serve(
        Route(allows=EVERYBODY, method=slow, handle=hang),
        Route(allows=EVERYBODY, method=echo.unary, handle=answer),
        Route(
            allows=EVERYBODY,
            method=replace(echo.unary, name="Known"),
            handle=answer,
            identify=lambda _: Identity.peer("ward"),
        ),
        transport=make_transport(limits=Limits(strange_bytes_max=1000)),
    )
    large = Chunk(data=bytes(800))
    first = asyncio.create_task(channel.unary(slow, large, timeout_seconds=10))
    await asyncio.wait_for(arrived.wait(), 10)
    with pytest.raises(UnreachableError, match="bytes of callers"):
        await channel.unary(echo.unary, large, timeout_seconds=10)
    assert await channel.unary(echo.unary, Chunk(offset=7), timeout_seconds=10) == Chunk(offset=7)
    assert await channel.unary(replace(echo.unary, name="Known"), large, timeout_seconds=10) == large
    done.set()
    assert await first == large
    await until(lambda: under_way(server) == 0)
    assert await channel.unary(echo.unary, large, timeout_seconds=10) == large


async def test_probes_are_answered_whatever_strangers_hold(make_transport, serve, echo):
    probe = replace(echo.unary, name="Probe", any_caller=True)
    slow = replace(probe, name="SlowProbe")
    arrived = asyncio.Event()

    async def hang(request: Chunk, context: Any) -> Chunk:
        arrived.set()
        await asyncio.Event().wait()
        return request

    limits = Limits(calls_max=1, probes_max=1)
    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.both, handle=mirror),
        Route(allows=EVERYBODY, method=probe, handle=answer),
        Route(allows=EVERYBODY, method=slow, handle=hang),
        transport=make_transport(limits=limits),
    )
    held = Caller(channel, echo.both, says(Chunk()))
    await held.hear()
    with pytest.raises(UnreachableError):
        await Caller(channel, echo.both, says(Chunk())).ends()
    assert await channel.unary(probe, Chunk(offset=7), timeout_seconds=10) == Chunk(offset=7)
    hanging = asyncio.create_task(channel.unary(slow, Chunk(), timeout_seconds=60))
    await asyncio.wait_for(arrived.wait(), 10)
    with pytest.raises(UnreachableError, match="probes"):  # and they have their bound too
        await channel.unary(probe, Chunk(), timeout_seconds=10)
    hanging.cancel()
    await asyncio.wait({hanging})
    await held.leave()


async def test_a_name_alone_has_no_turns_of_its_own(make_transport, serve, echo):
    limits = Limits(bulk_calls_max=4)  # one of strangers
    server, channel = await serve(
        Route(
            allows=EVERYBODY,
            method=echo.bulk,
            handle=mirror,
            identify=caller,
            present=lambda name: name == "ward",
        ),
        transport=make_transport(limits=limits),
    )
    names = [Caller(channel, echo.bulk, says(named(f"name-{i}"))) for i in range(6)]
    await until(lambda: under_way(server) == 6)
    await until(lambda: sum(not each.heard.empty() for each in names) == 1)
    ward = Caller(channel, echo.bulk, says(named("ward")))
    await ward.hear()
    assert sum(not each.heard.empty() for each in names) == 1
    for each in (*names, ward):
        await each.leave()


async def drips(name: str, size: int) -> AsyncGenerator[Chunk, None]:
    yield named(name)
    while True:
        await asyncio.sleep(0.02)
        yield Chunk(data=bytes(size))


async def test_the_slowest_loses_its_turn_once_others_wait(make_transport, serve, echo):
    limits = Limits(
        bulk_calls_max=2, turn_seconds=0.4, turn_bytes_per_second=5_000.0, bytes_per_second_min=1.0
    )
    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.bulk, handle=mirror, identify=caller),
        transport=make_transport(limits=limits),
    )
    slow = Caller(channel, echo.bulk, drips("slow", 5))
    fast = Caller(channel, echo.bulk, drips("fast", 10_000))
    await slow.hear()
    await fast.hear()
    await asyncio.sleep(2 * limits.turn_seconds)
    assert not slow.task.done()  # nobody waits
    ward = Caller(channel, echo.bulk, says(named("ward")))
    await ward.hear()
    with pytest.raises(TransferError) as caught:
        await slow.ends()
    assert caught.value.id == "transfer.crowded"
    assert "resume" in caught.value.fix
    assert not fast.task.done()
    for each in (fast, ward):
        await each.leave()


async def test_who_sends_slower_than_the_least_pace_loses_its_turn(
    make_transport, serve, echo, send, collect
):
    limits = Limits(bulk_calls_max=1, window_seconds=0.1, bytes_per_second_min=10_000)
    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.bulk, handle=mirror, identify=caller),
        transport=make_transport(limits=limits),
    )
    with pytest.raises(TransferError) as caught:
        await Caller(channel, echo.bulk, says(named("ward"))).ends()
    assert caught.value.id == "transfer.stalled"
    assert "resume" in caught.value.fix

    async def drops() -> Any:
        yield named("ward")
        for _ in range(100):  # never silent for long, and yet far too slow
            await asyncio.sleep(0.02)
            yield Chunk(data=b"x")

    with pytest.raises(TransferError):
        await Caller(channel, echo.bulk, drops()).ends()
    assert await collect(channel.stream(echo.bulk, send([named("ward")]))) == [named("ward")]


async def test_who_keeps_the_least_pace_is_never_cut_off(make_transport, serve, echo, collect):
    limits = Limits(window_seconds=1.0, bytes_per_second_min=400)
    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.bulk, handle=mirror, identify=caller),
        transport=make_transport(limits=limits),
    )

    async def slowly() -> Any:
        yield named("ward")
        for _ in range(12):  # in all longer than a window
            await asyncio.sleep(0.1)
            yield Chunk(data=bytes(400))

    assert len(await collect(channel.stream(echo.bulk, slowly()))) == 13


async def test_time_that_the_server_takes_itself_does_not_count(make_transport, serve, echo, send, collect):
    async def busy(requests: Any, context: Any) -> Any:
        async for request in requests:
            await asyncio.sleep(0.2)
            yield request

    limits = Limits(window_seconds=0.6, bytes_per_second_min=1e6)
    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.bulk, handle=busy, identify=caller),
        transport=make_transport(limits=limits),
    )
    items = [named("ward"), Chunk(offset=1), Chunk(offset=2), Chunk(offset=3)]
    assert await collect(channel.stream(echo.bulk, send(items))) == items


async def test_who_reads_nothing_loses_its_turn(make_transport, serve, echo, send, collect):
    limits = Limits(bulk_calls_max=1, window_seconds=0.2, bytes_per_second_min=1000)
    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.bulk, handle=flood, identify=caller),
        Route(allows=EVERYBODY, method=replace(echo.bulk, name="Other"), handle=mirror, identify=caller),
        transport=make_transport(limits=limits),
    )
    unread = channel.stream(echo.bulk, says(named("sleeper")))
    await anext(unread)
    async with asyncio.timeout(10):
        other = channel.stream(replace(echo.bulk, name="Other"), send([named("ward")]))
        assert await collect(other) == [named("ward")]
    await unread.aclose()


async def test_a_request_has_the_size_of_its_method(make_transport, serve, echo, send, collect):
    small, large = replace(echo.unary, request_bytes_max=100), replace(echo.both, request_bytes_max=1000)
    _, channel = await serve(
        Route(allows=EVERYBODY, method=small, handle=answer),
        Route(allows=EVERYBODY, method=large, handle=mirror),
    )
    with pytest.raises(TransferError) as caught:
        await channel.unary(small, Chunk(data=bytes(200)), timeout_seconds=10)
    assert caught.value.id == "transport.message_too_large"
    fits = Chunk(data=bytes(900))
    assert await collect(channel.stream(large, send([fits]))) == [fits]
    with pytest.raises(TransferError):
        await collect(channel.stream(large, send([fits, Chunk(data=bytes(2000))])))


async def test_what_a_refused_call_held_waits_for_no_garbage_collection(make_transport, serve, echo):
    class Held:
        """Stands for the request: in the handler's frame, and a message has no weak references."""

    seen: list[weakref.ref[Held]] = []

    async def refuse(request: Chunk, context: Any) -> Chunk:
        held = Held()
        seen.append(weakref.ref(held))
        raise UsageError("test.no", "it is not wanted")

    async def refuse_stream(requests: Any, context: Any) -> Any:
        async for _ in requests:
            held = Held()
            seen.append(weakref.ref(held))
            raise UsageError("test.no", "it is not wanted") from ValueError("no")
        yield LARGE

    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.unary, handle=refuse),
        Route(allows=EVERYBODY, method=echo.bulk, handle=refuse_stream),
    )
    gc.disable()
    try:
        with pytest.raises(UsageError):
            await channel.unary(echo.unary, LARGE, timeout_seconds=10)
        with pytest.raises(UsageError):
            await Caller(channel, echo.bulk, says(LARGE, then_waits=False)).ends()
        await until(lambda: [ref() for ref in seen] == [None, None])
    finally:
        gc.enable()


async def test_an_answer_that_takes_for_ever_is_given_up(make_transport, serve, echo):
    left = asyncio.Event()

    async def hang(request: Chunk, context: Any) -> Chunk:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return request

    _, channel = await serve(
        Route(allows=EVERYBODY, method=echo.unary, handle=hang),
        transport=make_transport(limits=Limits(answer_seconds_max=0.05)),
    )
    with pytest.raises(DeadlineError) as caught:
        await channel.unary(echo.unary, Chunk(), timeout_seconds=10)
    assert "was given up" in caught.value.message
    assert left.is_set()
