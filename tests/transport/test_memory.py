"""What only the in-memory transport does: faults, drawn from a seed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from muster.errors import UnreachableError
from muster.transport import MemoryTransport, Route
from muster.transport.faults import Fault, Passage, SeededFaults
from muster.transport.identity import EVERYBODY
from muster.transport.memory import MemoryHub
from protos.v1.tensors_pb2 import Chunk
from simulator.virtual_loop import run


async def mirror(requests: Any, context: Any) -> Any:
    async for request in requests:
        yield request


async def test_ports_are_given_out(echo):
    transport = MemoryTransport()
    first = await transport.serve("peer:0", [])
    second = await transport.serve("peer:0", [])
    assert first.address != second.address
    await first.stop(0)
    await transport.serve(first.address, [])


async def test_a_dropped_connection_looks_to_the_handler_like_the_end(echo):
    """gRPC's trap: a lost caller's requests end as if all had come; then the handler is cancelled."""
    seen: list[str] = []
    left = asyncio.Event()

    async def watch(requests: Any, context: Any) -> Any:
        try:
            async for request in requests:
                seen.append(f"message {request.offset}")
                yield request
            seen.append("end")
            await asyncio.sleep(0)
            seen.append("went on")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        finally:
            left.set()

    def drop_third(passage: Passage) -> Fault | None:
        return Fault(drop=True) if passage.to_server and passage.index == 2 else None

    transport = MemoryTransport(MemoryHub(faults=drop_third))
    server = await transport.serve("c", [Route(allows=EVERYBODY, method=echo.both, handle=watch)])
    channel = transport.connect("c")
    echoed = asyncio.Semaphore(1)

    async def in_step() -> Any:
        for offset in range(5):
            await echoed.acquire()
            yield Chunk(offset=offset)

    got = []
    with pytest.raises(UnreachableError, match="connection was lost"):
        async for item in channel.stream(echo.both, in_step()):
            got.append(item.offset)
            echoed.release()
    await left.wait()
    assert got == [0, 1]
    assert seen == ["message 0", "message 1", "end", "cancelled"]
    await server.stop(0)


async def test_a_dropped_connection_takes_its_other_calls_and_not_the_other_connection(echo, send):
    def drop_marked(passage: Passage) -> Fault | None:
        return Fault(drop=passage.method.bulk and passage.to_server and passage.index == 1)

    transport = MemoryTransport(MemoryHub(faults=drop_marked))
    routes = [Route(allows=EVERYBODY, method=method, handle=mirror) for method in (echo.both, echo.bulk)]
    server = await transport.serve("c", routes)
    channel = transport.connect("c")
    more = asyncio.Event()

    async def one_then_wait() -> Any:
        yield Chunk(offset=1)
        await more.wait()
        yield Chunk(offset=2)

    control = channel.stream(echo.both, one_then_wait())
    bulk = channel.stream(echo.bulk, send_one(Chunk(offset=1)))
    doomed = channel.stream(echo.bulk, one_then_wait())
    for stream in (control, bulk, doomed):
        assert (await anext(stream)).offset == 1
    more.set()
    with pytest.raises(UnreachableError):
        await anext(doomed)
    with pytest.raises(UnreachableError):
        await anext(bulk)
    assert (await anext(control)).offset == 2
    for stream in (control, bulk, doomed):
        await stream.aclose()
    await server.stop(0)


async def send_one(chunk: Chunk) -> Any:
    yield chunk
    await asyncio.Event().wait()


async def outcomes(echo: Any, send: Any, seed: int) -> tuple[list[str], float]:
    """What becomes of some calls, and how long they take."""
    faults = SeededFaults(seed, drop_probability=0.1, delay_seconds_max=5.0)
    transport = MemoryTransport(MemoryHub(faults=faults))
    server = await transport.serve("c", [Route(allows=EVERYBODY, method=echo.both, handle=mirror)])
    channel = transport.connect("c")
    results: list[str] = []
    for _ in range(20):
        got = 0
        try:
            async for _ in channel.stream(echo.both, send([Chunk(offset=i) for i in range(5)])):
                got += 1
            results.append(f"all {got}")
        except UnreachableError:
            results.append(f"lost after {got}")
    await server.stop(0)
    return results, asyncio.get_running_loop().time()


def test_faults_come_from_their_seed_alone(echo, send):
    first, seconds = run(outcomes(echo, send, seed=7))
    assert (first, seconds) == run(outcomes(echo, send, seed=7))
    assert first != run(outcomes(echo, send, seed=8))[0]
    assert "all 5" in first
    assert any(result.startswith("lost") for result in first)
    assert 0.0 < seconds <= 20 * 10 * 5.0


async def test_a_partition_is_between_two_that_have_names(echo, send):
    """Both ways, whoever calls; others are heard."""
    transport = {name: MemoryTransport(hub, name=name) for hub in [MemoryHub()] for name in ("a", "b", "c")}
    servers = [
        await each.serve(f"{name}:0", [Route(allows=EVERYBODY, method=echo.both, handle=mirror)])
        for name, each in transport.items()
    ]
    transport["a"].hub.faults = lambda passage: Fault(drop=True) if passage.between("a", "b") else None
    reached: dict[str, list[str]] = {}
    for caller, each in transport.items():
        for callee, server in zip(transport, servers, strict=True):
            try:
                answers = [
                    item async for item in each.connect(server.address).stream(echo.both, send([Chunk()]))
                ]
            except UnreachableError:
                continue
            assert len(answers) == 1
            reached.setdefault(caller, []).append(callee)
    assert reached == {"a": ["a", "c"], "b": ["b", "c"], "c": ["a", "b", "c"]}
    for server in servers:
        await server.stop(0)
