"""The floor under a round: the same bytes moved by bare grpc.aio streams of 1 MiB between as many processes.

No protobuf, no disk, no digest, no database: each client downloads the bytes and uploads as many, all clients at once.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from benchmarks.processes import processor_seconds

CHUNK = bytes(1 << 20)


def _pieces(size: int) -> list[bytes]:
    whole, rest = divmod(size, len(CHUNK))
    return [CHUNK] * whole + ([CHUNK[:rest]] if rest else [])


async def _serve(size: int) -> None:
    async def down(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for piece in _pieces(size):
            yield piece

    async def up(requests: AsyncIterator[bytes], _context: Any) -> bytes:
        held = 0
        async for piece in requests:
            held += len(piece)
        return str(held).encode()

    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def _client(port: int, size: int) -> None:
    """One line on standard input starts one round trip; one line on standard output ends it."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        down: Any = channel.unary_stream("/floor/Down")
        up: Any = channel.stream_unary("/floor/Up")

        async def pieces() -> AsyncIterator[bytes]:
            for piece in _pieces(size):
                yield piece

        loop = asyncio.get_running_loop()
        await channel.channel_ready()
        print("ready", flush=True)
        while await loop.run_in_executor(None, sys.stdin.readline):
            held = 0
            async for piece in down(b""):
                held += len(piece)
            if held != size or int(await up(pieces())) != size:
                raise RuntimeError("bytes were lost")
            print("done", flush=True)


def measure(peers: int, size: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a round, and processor seconds of a round over all processes."""
    command = [sys.executable, "-m", "benchmarks.floor"]
    server = subprocess.Popen([*command, "serve", str(size)], stdout=subprocess.PIPE, text=True)
    clients: list[subprocess.Popen[str]] = []
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        clients = [
            subprocess.Popen(
                [*command, "client", port, str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(peers)
        ]
        _each(clients, "ready")
        pids = [server.pid, *(client.pid for client in clients)]
        seconds: list[float] = []
        busy = 0.0
        for number in range(rounds + 1):
            if number == 1:  # the first round warms up
                busy = processor_seconds(pids)
            began = time.perf_counter()
            for client in clients:
                assert client.stdin is not None
                client.stdin.write("go\n")
                client.stdin.flush()
            _each(clients, "done")
            seconds.append(time.perf_counter() - began)
        busy = processor_seconds(pids) - busy
        return statistics.median(seconds[1:]), busy / rounds
    finally:
        for process in (*clients, server):
            process.kill()
            process.wait()


def _each(clients: list[subprocess.Popen[str]], word: str) -> None:
    for client in clients:
        assert client.stdout is not None
        if client.stdout.readline().strip() != word:
            raise RuntimeError("a floor client failed")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(_serve(int(sys.argv[2])))
    else:
        asyncio.run(_client(int(sys.argv[2]), int(sys.argv[3])))
