"""A real federation on one machine: a coordinator and peers as processes that talk gRPC on loopback.

For demos, benchmarks and fault tests: every process can be killed, restarted, and given a failpoint.

    async with ProcessFederation(folder, task_folders=["."]) as federation:
        await federation.start_coordinator()
        for index in range(4):
            federation.start_peer(f"peer-{index}", data={"index": index, "count": 4})
        run = await federation.run_to_end(spec)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from muster.errors import MusterError, UnreachableError
from muster.files.folders import append_private, private_folder, write_private
from muster.spec.model import RunSpec
from muster.transport import GrpcTransport
from muster.transport.base import Channel
from muster.wire import ADMIN
from protos.v1 import admin_pb2 as pb

START_SECONDS_MAX = 60.0
ENDED = ("FINISHED", "FAILED", "CANCELLED")


class ProcessFederation:
    """Logs of each process lie in `folder` as NAME.log, its state in a folder NAME."""

    def __init__(
        self,
        folder: Path,
        *,
        task_folders: Sequence[str | Path] = (".",),
        coordinator: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.address = "127.0.0.1:0"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._task_folders = [str(Path(each).resolve()) for each in task_folders]
        self._settings = dict(coordinator or {})
        self._channel: Channel | None = None

    async def __aenter__(self) -> Self:
        private_folder(self.folder)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            await self._channel.close()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                await asyncio.to_thread(process.wait, 10)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)

    # -- processes --------------------------------------------------------------------------------------

    async def start_coordinator(self, *, env: Mapping[str, str] | None = None, wait: bool = True) -> None:
        """The first start takes a free port; later ones take the same again."""
        data_dir = self.folder / "coordinator"
        self._write(
            "coordinator",
            "coordinator",
            {
                "address": self.address,
                "data_dir": str(data_dir),
                "task_folders": self._task_folders,
                **self._settings,
            },
        )
        self._spawn("coordinator", ["serve"], env)
        if wait:
            await self._await_address(data_dir / "coordinator.address")

    def start_peer(
        self,
        name: str,
        *,
        data: Mapping[str, Any] | None = None,
        allow: Sequence[str] = ("*",),
        attack: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        through: str | None = None,
    ) -> None:
        """`attack`, a drill: {"name": "sign-flip", "options": {"scale": 10}}. `through`: the address of a proxy. `env`
        reaches the tasks too."""
        address = through or self.address
        policy = self.folder / f"{name}.policy.toml"
        write_private(policy, "".join(f"[[allow]]\ntask = {json.dumps(task)}\n" for task in allow).encode())
        settings: dict[str, Any] = {
            "name": name,
            "data_dir": str(self.folder / name),
            "coordinator": address,
            "task_folders": self._task_folders,
            "policy": str(policy),
            "data": dict(data or {}),
            "device": "cpu",
            "worker_environment": sorted(env or ()),
        }
        if attack is not None:
            settings["attack"] = dict(attack)
        self._write(name, "peer", settings)
        self._spawn(name, ["join", address], env)

    async def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end. Gives the exit status."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return await asyncio.to_thread(process.wait)

    async def exited(self, name: str) -> int:
        """Waits until the process has ended by itself (a failpoint). Gives the exit status."""
        return await asyncio.to_thread(self.processes[name].wait)

    def kill_process(self, pid: int) -> None:
        """SIGKILL to a worker, say; one that has gone already is no error."""
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _spawn(self, name: str, command: Sequence[str], env: Mapping[str, str] | None) -> None:
        with append_private(self.folder / f"{name}.log") as log:
            self.processes[name] = subprocess.Popen(
                # -P: what lies in the folder that this is started in must not stand in for our packages.
                [sys.executable, "-P", "-m", "cli.main", *command, "-c", str(self.folder / f"{name}.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # All share this machine's cores: with a pool of threads each, they would only wait for each other.
                env={"OMP_NUM_THREADS": "1", **_own_environment(), **(env or {})},
            )

    def _write(self, name: str, table: str, settings: Mapping[str, Any]) -> None:
        lines = [f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in settings.items())]
        write_private(self.folder / f"{name}.toml", ("\n".join(lines) + "\n").encode())

    async def _await_address(self, path: Path) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not path.exists():
            status = self.processes["coordinator"].poll()
            if status is not None or time.monotonic() > deadline:
                raise UnreachableError(
                    "coordinator.not_started",
                    f"the coordinator did not start (exit status {status})",
                    cause=self.log("coordinator")[-2000:],
                )
            await asyncio.sleep(0.02)
        self.address = path.read_text()

    # -- the coordinator's admin service ------------------------------------------------------------------------------

    async def call(self, method: str, request: Any, *, timeout_seconds: float = 10.0) -> Any:
        """One unary admin call, e.g. `call("GetRun", pb.GetRunRequest(run_id=...))`."""
        if self._channel is None:
            self._channel = GrpcTransport().connect(self.address)
        return await self._channel.unary(ADMIN[method], request, timeout_seconds=timeout_seconds)

    async def call_patiently(self, method: str, request: Any, *, timeout_seconds: float = 10.0) -> Any:
        """The same, waiting while the coordinator is away."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                return await self.call(method, request, timeout_seconds=timeout_seconds)
            except MusterError as error:
                away = isinstance(error, UnreachableError) or error.status == "DEADLINE_EXCEEDED"
                if not away or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def submit(self, spec: RunSpec, *, request_id: str = "") -> str:
        """Gives the run id. The same `request_id` submits once, also across a restart."""
        request = pb.SubmitRunRequest(
            spec_json=spec.canonical_json(), request_id=request_id or uuid.uuid4().hex
        )
        # The coordinator imports the task first.
        answer = await self.call_patiently("SubmitRun", request, timeout_seconds=START_SECONDS_MAX)
        return str(answer.run.run_id)

    async def run(self, run_id: str) -> pb.Run:
        """The run as it stands."""
        return (await self.call_patiently("GetRun", pb.GetRunRequest(run_id=run_id))).run  # type: ignore[no-any-return]

    async def progressed(self, run_id: str, committed: int) -> pb.Run:
        """Waits until the run has committed more rounds than these, or has ended."""
        async for run in self.watch(run_id, every_seconds=0.05):
            if run.rounds_committed > committed:
                return run
        return await self.run(run_id)

    async def watch(self, run_id: str, every_seconds: float = 0.1) -> AsyncIterator[pb.Run]:
        """The run as it stands, again and again until it has ended or has paused itself."""
        while True:
            run = await self.run(run_id)
            yield run
            if run.state in ENDED or run.needs_resume:
                return
            await asyncio.sleep(every_seconds)

    async def run_to_end(self, spec: RunSpec, *, request_id: str = "") -> pb.Run:
        run_id = await self.submit(spec, request_id=request_id)
        ended = [run async for run in self.watch(run_id)]
        return ended[-1]

    async def rounds(self, run_id: str) -> list[pb.Round]:
        found: list[pb.Round] = []
        request = pb.ListRoundsRequest(run_id=run_id)
        while True:
            answer = await self.call_patiently("ListRounds", request)
            found.extend(answer.rounds)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return found

    async def events(self, run_id: str = "") -> list[pb.Event]:
        if self._channel is None:
            self._channel = GrpcTransport().connect(self.address)

        async def once() -> AsyncIterator[pb.WatchEventsRequest]:
            yield pb.WatchEventsRequest(run_id=run_id)

        found: list[pb.Event] = []
        async for answer in self._channel.stream(ADMIN["WatchEvents"], once(), timeout_seconds=30):
            found.extend(answer.events)
        return found


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return json.dumps(value)


def _own_environment() -> dict[str, str]:
    """Without this machine's settings of Muster, which would go before those of the files here: each has its own."""
    theirs = ("MUSTER_COORDINATOR__", "MUSTER_PEER__")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
