"""The devices of this machine, and one worker process for each."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from muster.errors import TaskError
from muster.worker.host import WorkerHost
from peer.orders import Order

log = structlog.get_logger()

JOBS_MODULE = "peer.jobs"
REBUILD_SECONDS_MAX = 600.0
HANG_MARGIN_SECONDS = 2.0  # a job that hangs is stopped so long before the deadline, to be told of in time
PROBE_SECONDS_MAX = 120.0  # to import torch on a cold machine and to wake its GPUs

# Where there is none of these there is no NVIDIA GPU, and nothing has to be started to find that out.
_NVIDIA_PATHS = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia"), Path("/dev/dxg"))


class Worker(Protocol):
    """What the daemon needs of a `WorkerHost`."""

    async def start(self) -> None: ...

    async def run(
        self,
        job: str,
        args: Mapping[str, Any],
        *,
        timeout_seconds: float,
        scope: str = "",
        on_progress: Callable[[float], None] | None = None,
    ) -> dict[str, Any]: ...

    def forget(self, scope: str) -> None: ...

    async def close(self) -> None: ...


MakeWorker = Callable[[str], Worker]  # given a device


def worker_maker(log_folder: Path) -> MakeWorker:
    """Real worker processes, each with its own log file in `log_folder`."""

    def make(device: str) -> Worker:
        label = f"worker-{device.replace(':', '')}"
        return WorkerHost(
            JOBS_MODULE,
            label=label,
            device=device,
            log_path=log_folder / f"{label}.log",
            rest_job="rest",
        )

    return make


async def choose_devices(wanted: str, make: MakeWorker) -> list[str]:
    """`wanted` itself, or for "auto" every CUDA device, else MPS, else the CPU.

    torch is asked only on a machine that may have a GPU, and in a process of its own.
    """
    if wanted != "auto":
        return [wanted]
    if not may_have_gpu():
        return ["cpu"]
    probe = make("cpu")
    try:
        found = await probe.run("describe", {}, timeout_seconds=PROBE_SECONDS_MAX)
    except TaskError as error:
        log.warning("devices.probe_failed", error=str(error), device="cpu")
        return ["cpu"]
    finally:
        await probe.close()
    return [str(device) for device in found["devices"]]


def may_have_gpu() -> bool:
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    return platform.system() == "Windows" or any(path.exists() for path in _NVIDIA_PATHS)


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A worker and the device that it computes on."""

    device: str
    worker: Worker

    async def run(self, job: str, order: Order, *, seconds_left: float) -> dict[str, Any]:
        """A job of an assignment whose deadline is so far away. Raises what `WorkerHost.run` raises."""
        seconds = max(1.0, seconds_left - min(HANG_MARGIN_SECONDS, 0.1 * seconds_left))
        return await self.worker.run(job, asdict(order), timeout_seconds=seconds, scope=order.run_id)


class WorkerPool:
    """One worker for each device. Who waits for one gets it in order of arrival; of several that are idle, the one that
    worked last, which may still hold what the next job needs."""

    def __init__(self, devices: Sequence[str], make: MakeWorker) -> None:
        self.devices = tuple(devices)
        self._desks = [Desk(device=device, worker=make(device)) for device in devices]
        self._idle: asyncio.LifoQueue[Desk] = asyncio.LifoQueue()
        self._at_work: dict[str, asyncio.Task[None]] = {}  # by device: what outlives whoever had the desk
        for desk in reversed(self._desks):
            self._idle.put_nowait(desk)

    async def start(self) -> None:
        """Starts the processes, so that the first job need not wait for their imports."""
        await asyncio.gather(*(desk.worker.start() for desk in self._desks))

    @asynccontextmanager
    async def desk(self) -> AsyncGenerator[Desk]:
        desk = await self._idle.get()
        try:
            yield desk
        finally:
            work = self._at_work.pop(desk.device, None)
            if work is None or work.done():
                self._idle.put_nowait(desk)
            else:
                work.add_done_callback(lambda _: self._idle.put_nowait(desk))

    def outlives(self, desk: Desk, work: asyncio.Task[None]) -> None:
        """The desk, which the caller has, is not idle before this work is done, whoever gives it back."""
        self._at_work[desk.device] = work

    async def rebuild(self, base: Path, deltas: Sequence[Path], target: Path, scale: Path | None) -> str:
        """Makes a model version of an older one and the deltas that follow it; see `peer.rebuild`.

        Raises `MusterError`: the version has to be fetched whole then.
        """
        order = {
            "base": str(base),
            "deltas": [str(path) for path in deltas],
            "target": str(target),
            "scale": None if scale is None else str(scale),
        }
        async with self.desk() as desk:
            made = await desk.worker.run("rebuild", order, timeout_seconds=REBUILD_SECONDS_MAX)
        return str(made["digest"])

    def forget(self, run_id: str) -> None:
        """The run is over: what workers have loaded for it, code and data, serves no other run."""
        for desk in self._desks:
            desk.worker.forget(run_id)

    async def close(self) -> None:
        await asyncio.gather(*(desk.worker.close() for desk in self._desks))
