"""One worker process as its parent sees it: pipes, stacks, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import muster.worker
from muster.errors import TaskError
from muster.worker.logfile import LogFile
from muster.worker.outcomes import MESSAGE_BYTES_MAX
from muster.worker.user import WorkerUser

LAST_WORDS_SECONDS = (
    1.0  # for what a process wrote before it ended, should a process it left behind hold the pipe
)
STACK_SECONDS_MAX = 2.0  # for a hung process to write its stacks
STACK_BYTES_MAX = 64 << 10
POLL_SECONDS = 0.02


class WorkerProcess:
    """Made by `start_process`. It leads its own process group, to which all its children belong."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        pipes: tuple[asyncio.ReadTransport, asyncio.WriteTransport],
        stacks: BinaryIO,
        pump: threading.Thread,
    ) -> None:
        self._process = process
        self._reader = reader
        self._events, self._commands = pipes
        self._stacks = stacks
        self._pump = pump
        self._exited: asyncio.Future[Any] = asyncio.ensure_future(process.wait())
        self._line: asyncio.Future[Any] | None = None
        self._last_stacks = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it lives; negative: the signal that ended it."""
        return self._process.returncode

    def send(self, message: dict[str, Any]) -> None:
        self._commands.write(json.dumps(message).encode() + b"\n")

    async def next_event(self) -> dict[str, Any] | None:
        """The next message, or None once the process has ended and all that it said was read.

        Raises `TaskError` "worker.malformed" for what is not a message.
        """
        if self._line is None:
            self._line = asyncio.ensure_future(self._reader.readline())
        await asyncio.wait({self._line, self._exited}, return_when=asyncio.FIRST_COMPLETED)
        if not self._line.done():
            self.kill_group()  # what it left behind holds the pipe open
            await asyncio.wait({self._line}, timeout=LAST_WORDS_SECONDS)
            if not self._line.done():
                return None
        line, self._line = self._line, None
        return await self._parsed(line)

    async def _parsed(self, finished: asyncio.Future[Any]) -> dict[str, Any] | None:
        try:
            line: bytes = finished.result()
            event: Any = json.loads(line) if line.endswith(b"\n") else None
        except ValueError as error:  # too long, or not JSON: something else writes into the pipe
            raise TaskError(
                "worker.malformed", "a worker process sent what is not a message", cause=str(error)
            ) from error
        if not isinstance(event, dict):
            # It ended in mid-sentence, or closed the pipe: either way nothing more can come of it.
            self.kill_group()
            await self._exited
            return None
        return event

    async def ask_stacks(self) -> str:
        """Where every thread stands now: written by the interpreter itself, which needs no lock to be
        free."""
        before = self._stacks_size()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
        size = before
        for _ in range(int(STACK_SECONDS_MAX / POLL_SECONDS)):
            await asyncio.sleep(POLL_SECONDS)
            grown = self._stacks_size()
            if grown > before and grown == size:
                break
            size = grown
        return self.stacks()

    def stacks(self) -> str:
        """What was written at a fatal signal, or when asked for; known after `end` too."""
        if self._stacks.closed:
            return self._last_stacks
        size = self._stacks_size()
        start = max(0, size - STACK_BYTES_MAX)
        return os.pread(self._stacks.fileno(), size - start, start).decode(errors="replace")

    def _stacks_size(self) -> int:
        return os.fstat(self._stacks.fileno()).st_size

    def kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def end(self, *, patience_seconds: float = 0.0) -> None:
        """Ends it with all that it started. With patience, it is first asked to end by itself."""
        self._commands.close()
        if patience_seconds:
            await asyncio.wait({self._exited}, timeout=patience_seconds)
        self.kill_group()
        await self._exited
        if self._line is not None:
            self._line.cancel()
            await asyncio.gather(self._line, return_exceptions=True)
        self._events.close()
        self._last_stacks = self.stacks()
        self._stacks.close()
        await asyncio.to_thread(self._pump.join, LAST_WORDS_SECONDS)


async def start_process(
    module: str, label: str, log: LogFile, environment: Mapping[str, str], user: WorkerUser | None = None
) -> WorkerProcess:
    """Spawns `python -m muster.worker MODULE`: a new interpreter that shares nothing with this one but four
    files, and not the user if it is given another."""
    if user is not None:
        environment = user.environment(environment)
    command_end, commands = os.pipe()
    events, event_end = os.pipe()
    output, output_end = os.pipe()
    stacks = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
    theirs = (command_end, event_end, output_end)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the folder it is started in must not stand in for our packages
            *("-m", "muster.worker", module),
            *("--commands-fd", str(command_end), "--events-fd", str(event_end)),
            *("--stacks-fd", str(stacks.fileno()), "--parent-pid", str(os.getpid())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output_end,
            stderr=output_end,
            pass_fds=(command_end, event_end, stacks.fileno()),
            env=_with_our_root(environment),
            start_new_session=True,
            **({} if user is None else user.start_options()),
        )
    except BaseException:
        for fd in (commands, events, output):
            os.close(fd)
        stacks.close()
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    pump = log.follow(output, f"{label}-log")
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MESSAGE_BYTES_MAX)
    reading, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(events, "rb", 0)
    )
    writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(commands, "wb", 0))
    return WorkerProcess(process, reader, (reading, writing), stacks, pump)


def _with_our_root(environment: Mapping[str, str]) -> dict[str, str]:
    """If Muster runs from a bare checkout, with the way to it."""
    root = str(Path(muster.worker.__file__).parents[2])
    found = dict(environment)
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        before = found.get("PYTHONPATH")
        found["PYTHONPATH"] = root + (os.pathsep + before if before else "")
    return found
