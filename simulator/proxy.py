"""A TCP proxy that misbehaves as told: a tool for tests of anything that talks over TCP.

    async with ChaosProxy(server_address, script=[Link(cut_up_bytes=300_000), Link()]) as proxy:
        connect(proxy.address)      # the first connection breaks after 300 kB, the next ones live

It needs no privileges and no kernel module. What it does it does on purpose, by script or by call; the only
randomness is the jitter, and that has a seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from muster.seeds import derive_random

_BLOCK_BYTES = 1 << 16
_THROTTLE_STEP_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Link:
    """How one connection behaves. "Up" is towards the server."""

    delay_seconds: float = 0.0  # every block of at most 64 KiB waits so long, each way
    jitter_seconds: float = 0.0  # and longer by a time uniform in [0, this]
    bits_per_second: float | None = None  # the most that passes, each way
    cut_up_bytes: int | None = None  # both sides are reset once so many bytes have passed up
    cut_down_bytes: int | None = None
    refused: bool = False  # reset as soon as it is made


@dataclass(eq=False)
class _Connection:
    link: Link
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    def reset(self) -> None:
        for side in (self.client, self.server):
            if side is not None:
                _reset(side)
        for task in self.tasks:
            task.cancel()


def _reset(side: asyncio.StreamWriter) -> None:
    """Closes with RST: to the other end an error, where FIN would be the end of a well-ended stream."""
    sock = side.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.transport.abort()


class ChaosProxy:
    """Listens on a free port of 127.0.0.1 and passes everything on to `target` ("host:port").

    `script` has a `Link` for each connection in the order of their coming; the last one serves all further
    ones. Give it before the start, or set it at any time for the connections to come.
    """

    def __init__(self, target: str, *, script: Sequence[Link] = (), seed: int = 0) -> None:
        host, _, port = target.rpartition(":")
        self.script: Sequence[Link] = script
        self.accepted = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._target = (host.strip("[]"), int(port))
        self._random = derive_random(seed, "simulator.proxy")
        self._connections: set[_Connection] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_BLOCK_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [task for connection in self._connections for task in connection.tasks]
        self.cut()
        if tasks:
            await asyncio.wait(tasks)
        await self._server.wait_closed()

    @property
    def address(self) -> str:
        assert self._server is not None, "enter the proxy first"
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    # -- what can be done to it ------------------------------------------------------------------------------

    def cut(self) -> int:
        """Resets every connection (both sides see it at once) and tells how many."""
        connections = list(self._connections)
        for connection in connections:
            connection.reset()
        return len(connections)

    def halve(self) -> int:
        """Leaves every connection half-open: the server's side is reset, the client's stays, silent for
        ever."""
        connections = list(self._connections)
        for connection in connections:
            for task in connection.tasks:
                task.cancel()
            if connection.server is not None:
                _reset(connection.server)
        return len(connections)

    def freeze(self) -> None:
        """Nothing passes until `thaw`, over the connections there are and those to come; none is closed."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    # -- how it works ----------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = self.script[min(self.accepted, len(self.script) - 1)] if self.script else Link()
        self.accepted += 1
        connection = _Connection(link=link, client=writer)
        if link.refused:
            connection.reset()
            return
        self._connections.add(connection)
        try:
            server_reader, connection.server = await asyncio.open_connection(
                *self._target, limit=_BLOCK_BYTES
            )
        except OSError:
            self._connections.discard(connection)
            connection.reset()
            return
        connection.tasks = [
            asyncio.create_task(self._pass(connection, reader, connection.server, up=True)),
            asyncio.create_task(self._pass(connection, server_reader, writer, up=False)),
        ]
        for task in connection.tasks:
            task.add_done_callback(lambda _: self._forget(connection))

    def _forget(self, connection: _Connection) -> None:
        if all(task.done() for task in connection.tasks):
            halved = not connection.client.is_closing() and all(task.cancelled() for task in connection.tasks)
            if not halved:
                self._connections.discard(connection)
                connection.reset()

    async def _pass(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        link = connection.link
        passed, cut_bytes = 0, link.cut_up_bytes if up else link.cut_down_bytes
        block_bytes = _BLOCK_BYTES
        if link.bits_per_second is not None:
            block_bytes = max(1, min(block_bytes, int(link.bits_per_second / 8 * _THROTTLE_STEP_SECONDS)))
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(block_bytes):
                await self._hold(link, len(data))
                if cut_bytes is not None:
                    data = data[: cut_bytes - passed]
                writer.write(data)
                await writer.drain()
                passed += len(data)
                self._count(len(data), up=up)
                if cut_bytes is not None and passed >= cut_bytes:
                    connection.reset()
                    return
            if writer.can_write_eof():
                writer.write_eof()

    async def _hold(self, link: Link, size: int) -> None:
        await self._flowing.wait()
        seconds = link.delay_seconds
        if link.jitter_seconds:
            seconds += self._random.uniform(0.0, link.jitter_seconds)
        if link.bits_per_second is not None:
            seconds += size * 8 / link.bits_per_second
        if seconds > 0:
            await asyncio.sleep(seconds)

    def _count(self, size: int, *, up: bool) -> None:
        if up:
            self.bytes_up += size
        else:
            self.bytes_down += size
