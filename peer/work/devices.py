"""The devices of this machine, and one worker process for each."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from muster.errors import TaskError
from muster.worker.base import Worker
from muster.worker.handover import Handover
from muster.worker.host import WorkerHost
from muster.worker.user import WorkerUser
from peer.work.lending import lent, taken
from peer.work.orders import Order

log = structlog.get_logger()

JOBS_MODULE, REST_JOB = "peer.work.jobs", "rest"
REBUILD_SECONDS_MAX = 600.0
HANG_MARGIN_SECONDS = 2.0  # a job that hangs is stopped so long before the deadline, to be told of in time
PROBE_SECONDS_MAX = 120.0  # to import torch on a cold machine and to wake its GPUs

# Where there is none of these there is no NVIDIA GPU, and nothing has to be started to find that out.
_NVIDIA_PATHS = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia"), Path("/dev/dxg"))


MakeWorker = Callable[[str], Worker]  # given a device
CountThreads = Callable[[Order], int]  # of a job; 0 leaves it to torch


def worker_maker(
    log_folder: Path, environment: Callable[[], Mapping[str, str]], user: WorkerUser | None = None
) -> MakeWorker:
    """Real worker processes, each with its own log file in `log_folder`; `environment` and `user` are theirs."""

    def make(device: str) -> Worker:
        label = f"worker-{device.replace(':', '')}"
        return WorkerHost(
            JOBS_MODULE,
            label=label,
            device=device,
            log_path=log_folder / f"{label}.log",
            rest_job=REST_JOB,
            environment=environment,
            user=user,
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
    """Whether this machine may have a GPU, seen without loading torch."""
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    return platform.system() == "Windows" or any(path.exists() for path in _NVIDIA_PATHS)


@dataclass(frozen=True, kw_only=True)
class WorkerSlot:
    """A worker and the device that it computes on."""

    device: str
    worker: Worker
    threads: CountThreads
    handover: Handover | None = None  # where the worker is another user's

    async def run(self, job: str, order: Order, *, seconds_left: float) -> dict[str, Any]:
        """A job of an assignment whose deadline is so far away. Raises what `WorkerHost.run` raises."""
        seconds = max(1.0, seconds_left - min(HANG_MARGIN_SECONDS, 0.1 * seconds_left))
        order = replace(order, threads=self.threads(order))
        if self.handover is None:
            return await self.worker.run(job, asdict(order), timeout_seconds=seconds, scope=order.run_id)
        with self.handover.exchange() as exchange:
            args = asdict(lent(order, exchange))
            made = await self.worker.run(job, args, timeout_seconds=seconds, scope=order.run_id)
            return await taken(order, made, exchange)

    async def rebuild(self, base: Path, deltas: Sequence[Path], target: Path, scale: Path | None) -> str:
        """As `WorkerPool.rebuild`."""
        if self.handover is None:
            return await self._rebuild(base, deltas, target, scale)
        with self.handover.exchange() as exchange:
            digest = await self._rebuild(
                exchange.lend(base),
                [exchange.lend(path) for path in deltas],
                exchange.place(target),
                None if scale is None else exchange.lend(scale),
            )
            await exchange.take(target)
        return digest

    async def _rebuild(
        self, base: Path | str, deltas: Sequence[Path | str], target: Path | str, scale: Path | str | None
    ) -> str:
        order = {
            "base": str(base),
            "deltas": [str(path) for path in deltas],
            "target": str(target),
            "scale": None if scale is None else str(scale),
        }
        made = await self.worker.run("rebuild", order, timeout_seconds=REBUILD_SECONDS_MAX)
        return str(made["digest"])


class WorkerPool:
    """Some workers, each with its device, for one peer or for several that share them. Who waits for one gets it in
    order of arrival."""

    def __init__(
        self,
        devices: Sequence[str],
        make: MakeWorker,
        threads: CountThreads = lambda _order: 0,
        handover: Handover | None = None,
    ) -> None:
        self.devices = tuple(devices)
        self._desks = [
            WorkerSlot(device=device, worker=make(device), threads=threads, handover=handover)
            for device in devices
        ]
        self._idle = list(reversed(self._desks))  # the one that worked last at the end
        self._free = asyncio.Semaphore(len(self._desks))
        self._kept: dict[str, WorkerSlot] = {}  # who worked where last, and may find there what it has loaded
        self._at_work: dict[WorkerSlot, asyncio.Task[None]] = {}  # what outlives its caller

    async def start(self) -> None:
        """Starts the processes, so that the first job need not wait for their imports."""
        await asyncio.gather(*(desk.worker.start() for desk in self._desks))

    @asynccontextmanager
    async def desk(self, name: str = "") -> AsyncGenerator[WorkerSlot]:
        """A worker for the peer of that name: the one where it worked last, if that is idle; else one where fewest have
        worked."""
        await self._free.acquire()
        desk = self._choose(name)
        self._idle.remove(desk)
        try:
            yield desk
        finally:
            work = self._at_work.pop(desk, None)
            if work is None or work.done():
                self._give_back(desk)
            else:
                work.add_done_callback(lambda _: self._give_back(desk))

    def outlives(self, desk: WorkerSlot, work: asyncio.Task[None]) -> None:
        """The desk, which the caller has, is not idle before this work is done, whoever gives it back."""
        self._at_work[desk] = work

    def _give_back(self, desk: WorkerSlot) -> None:
        self._idle.append(desk)
        self._free.release()

    def _choose(self, name: str) -> WorkerSlot:
        known = self._kept.get(name)
        if known is not None and known in self._idle:
            return known
        used = list(self._kept.values())
        desk = min(reversed(self._idle), key=used.count)
        if name:
            self._kept[name] = desk
        return desk

    async def rebuild(self, base: Path, deltas: Sequence[Path], target: Path, scale: Path | None) -> str:
        """Makes a model version of an older one and the deltas that follow it; see `exchange.rebuild`.

        Raises `MusterError`: the version has to be fetched whole then.
        """
        async with self.desk() as desk:
            return await desk.rebuild(base, deltas, target, scale)

    def forget(self, run_id: str) -> None:
        """The run is over: what workers have loaded for it, code and data, serves no other run."""
        for desk in self._desks:
            desk.worker.forget(run_id)

    async def close(self) -> None:
        await asyncio.gather(*(desk.worker.close() for desk in self._desks))
