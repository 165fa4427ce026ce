"""The misbehaving proxy, in front of a plain TCP server that sends back what it gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from simulator.proxy import ChaosProxy, Link


@pytest.fixture
async def target() -> AsyncGenerator[str]:
    async def send_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(send_back, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"{host}:{port}"
    server.close()
    await server.wait_closed()


async def exchange(address: str, data: bytes) -> bytes:
    """Sends `data`, half-closes and returns all that comes back."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read(-1)
    finally:
        writer.close()


async def test_it_passes_everything_by_default(target):
    data = bytes(range(256)) * 2000
    async with ChaosProxy(target) as proxy:
        assert await exchange(proxy.address, data) == data
        assert (proxy.accepted, proxy.bytes_up, proxy.bytes_down) == (1, len(data), len(data))


async def test_each_connection_has_its_link_and_the_last_one_serves_the_rest(target):
    async with ChaosProxy(target, script=[Link(refused=True), Link(cut_up_bytes=1000), Link()]) as proxy:
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await exchange(proxy.address, bytes(50_000))
        for _ in range(3):
            assert await exchange(proxy.address, b"hello") == b"hello"
        assert proxy.bytes_up == 1000 + 3 * 5


async def test_a_throttled_link_takes_its_time(target):
    async with ChaosProxy(target, script=[Link(bits_per_second=800_000)]) as proxy:
        started = time.monotonic()
        assert await exchange(proxy.address, bytes(30_000)) == bytes(30_000)
        assert time.monotonic() - started >= 0.3


async def test_a_slow_link_delays_both_ways(target):
    async with ChaosProxy(target, script=[Link(delay_seconds=0.1, jitter_seconds=0.01)]) as proxy:
        started = time.monotonic()
        assert await exchange(proxy.address, b"hello") == b"hello"
        assert time.monotonic() - started >= 0.2


async def test_frozen_it_passes_nothing_until_it_thaws(target):
    async with ChaosProxy(target) as proxy:
        proxy.freeze()
        call = asyncio.create_task(exchange(proxy.address, b"hello"))
        done, _ = await asyncio.wait([call], timeout=0.1)
        assert not done
        assert proxy.bytes_up == 0
        proxy.thaw()
        assert await call == b"hello"


async def test_cut_resets_and_halve_is_silent(target):
    async with ChaosProxy(target) as proxy:
        host, port = proxy.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"a")
        assert await reader.read(1) == b"a"
        assert proxy.halve() == 1
        silence = asyncio.create_task(reader.read(1))
        done, _ = await asyncio.wait([silence], timeout=0.1)
        assert not done
        assert proxy.cut() == 1
        with pytest.raises(ConnectionError):
            await silence
        writer.close()


async def test_a_target_that_is_not_there_is_a_reset(target, unused_tcp_port):
    async with ChaosProxy(f"127.0.0.1:{unused_tcp_port}") as proxy:
        with pytest.raises(ConnectionError):
            await exchange(proxy.address, b"hello")
