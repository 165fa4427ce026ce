"""A whole federation in one process, for users' own tests: no sockets, no command, the real thing otherwise.

    async with start_local(folder, peers=3, allow=["my.tasks:Flowers"]) as federation:
        run = await federation.run_to_end(spec)
        weights = await federation.model(run.run_id)

The coordinator and the peers are those that `muster serve` and `muster join` run; they talk protobuf over the
in-memory transport and train in worker processes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from coordinator.engine.standings import is_aside, is_present
from coordinator.engine.state import ResumeRequested, RunStatus, RunSubmitted
from coordinator.server import RunningCoordinator
from coordinator.store import RoundRow, RunRow, WarningRow
from muster.config.settings import CoordinatorConfig, LogLevel, PeerConfig
from muster.errors import NotFoundError
from muster.files.folders import write_private
from muster.model.modelfile import ModelFile, export_state
from muster.runtime.cores import said_threads, share, usable_cores
from muster.spec.model import RunSpec
from muster.transport import MemoryTransport
from muster.worker.environment import worker_environment
from muster.worker.host import WorkerHost
from peer.daemon import run_peer
from peer.work.devices import JOBS_MODULE, REST_JOB, WorkerPool

if TYPE_CHECKING:
    from torch import Tensor

WORKERS_MIN = 4  # so that one slow peer of a few does not hold up the others
SETTLED = ("FINISHED", "FAILED", "CANCELLED", "PAUSED")


class LocalFederation:
    def __init__(self, running: RunningCoordinator) -> None:
        self._running = running
        self._store = running.coordinator.store
        self._submitted = 0

    async def submit(self, spec: RunSpec) -> str:
        """Gives the run id. Raises `ConfigError` if the spec names what is not installed."""
        self._submitted += 1
        run_id = f"local-{self._submitted}"
        event = RunSubmitted(run_id=run_id, spec=spec, spec_toml="", request_id=run_id)
        await self._running.coordinator.submissions.submit(event)
        return run_id

    async def run_to_end(self, spec: RunSpec) -> RunRow:
        """Submits and waits as `settled` does; `state` and `reason` tell."""
        return await self.settled(await self.submit(spec))

    async def settled(self, run_id: str) -> RunRow:
        """Waits until the run has ended, has paused itself after too many skipped rounds, or waits for peers since
        some of those that are here are set aside."""
        seen = 0
        while True:
            row = await self._store.run(run_id)
            if row is not None and (row.state in SETTLED or self._starves(run_id)):
                return row
            seen = await self._store.wait_for_events(seen)

    async def round(self, run_id: str, number: int) -> RoundRow:
        """A round with its assignments, as far as it has come."""
        row = await self._store.round(run_id, number)
        if row is None:
            raise NotFoundError("round.not_found", f"run {run_id!r} has no round {number}")
        return row

    def _starves(self, run_id: str) -> bool:
        """Whether it waits for peers, with some here that are set aside: nobody else will come."""
        run = self._running.coordinator.runs.get(run_id)
        if run is None or run.status is not RunStatus.RUNNING:  # what is decided may not be stored yet
            return False
        if run.rounds or run.evaluations or run.rest is not None:
            return False
        here = filter(is_present, self._running.coordinator.members.views().values())
        return any(is_aside(run, peer.peer_id) for peer in here)

    async def resume(self, run_id: str) -> None:
        """Resumes a paused run, and asks the peers that were set aside again. Raises `NotFoundError` for a run that has
        ended."""
        await self._running.coordinator.runs.post(ResumeRequested(run_id=run_id))

    async def warnings(self, run_id: str) -> list[WarningRow]:
        """What must not be silent of the run, newest last."""
        return await self._store.warnings(run_id)

    async def model(self, run_id: str) -> dict[str, Tensor]:
        """The newest model version, as a state dict for the plain PyTorch model."""
        row = await self._store.model(run_id)
        if row is None:
            raise NotFoundError("model.not_found", f"run {run_id!r} has no model yet")
        file = ModelFile(self._running.coordinator.blobs.path(row.digest))
        try:
            return export_state(file)
        finally:
            file.close()


@asynccontextmanager
async def start_local(
    folder: Path,
    *,
    peers: int,
    allow: Sequence[str],
    data: Sequence[Mapping[str, Any]] | None = None,
    task_folders: Sequence[Path] = (Path(),),
    attacks: Mapping[int, Mapping[str, Any]] | None = None,
    coordinator: Mapping[str, Any] | None = None,
    workers: int | None = None,
    log_level: LogLevel | None = None,
) -> AsyncGenerator[LocalFederation]:
    """A coordinator and `peers` peers, named peer-0, peer-1, ..., with their state in `folder`.

    `data[i]` is peer i's `site.data` (default: its index and the count); `attacks` makes some of them lie, e.g.
    `{0: {"name": "sign-flip"}}`; `coordinator` has more of its settings.

    At most `workers` processes train (default: one for each core, but no fewer than `WORKERS_MIN`); more peers than
    that share them, which costs time and makes the same bytes. What a task keeps in its module, peers that share a
    process share too. Nothing is logged unless `log_level` is given, or the program has configured structlog itself.
    """
    transport = MemoryTransport()
    policy = folder / "policy.toml"
    write_private(policy, "".join(f'[[allow]]\ntask = "{task}"\n' for task in allow).encode())
    config = CoordinatorConfig.model_validate(
        {
            "address": "127.0.0.1:0",
            "data_dir": folder / "coordinator",
            "allow": tuple(allow),
            "task_folders": tuple(task_folders),
            **(coordinator or {}),
        }
    )
    async with AsyncExitStack() as stack:
        stack.enter_context(_logging(log_level))
        running = await RunningCoordinator.start(config, transport)
        stack.push_async_callback(running.stop)
        pool = await _shared(folder, peers, workers, stack)
        daemons: list[asyncio.Task[None]] = []
        stack.push_async_callback(_end, daemons)
        for index in range(peers):
            settings = PeerConfig.model_validate(
                {
                    "name": f"peer-{index}",
                    "coordinator": running.address,
                    "data_dir": folder / f"peer-{index}",
                    "policy": policy,
                    "device": "cpu",
                    "data": dict(data[index]) if data else {"index": index, "count": peers},
                    "task_folders": tuple(task_folders),
                    "attack": (attacks or {}).get(index),
                }
            )
            daemons.append(asyncio.create_task(run_peer(settings, transport, workers=pool)))
        yield LocalFederation(running)


async def _end(daemons: Sequence[asyncio.Task[None]]) -> None:
    for daemon in daemons:
        daemon.cancel()
    await asyncio.gather(*daemons, return_exceptions=True)


async def _shared(folder: Path, peers: int, workers: int | None, stack: AsyncExitStack) -> WorkerPool | None:
    """The workers that the peers share; None where each has its own."""
    cores = usable_cores()
    count = max(cores, WORKERS_MIN) if workers is None else max(1, workers)
    if peers <= count:
        return None
    threads = said_threads(os.environ) or share(cores, count)
    numbers = itertools.count()

    def make(device: str) -> WorkerHost:
        return WorkerHost(
            JOBS_MODULE,
            label=f"worker-{(number := next(numbers))}",
            device=device,
            log_path=folder / "workers" / f"worker-{number}.log",
            rest_job=REST_JOB,
            environment=lambda: worker_environment(os.environ, threads=threads),
        )

    pool = WorkerPool(["cpu"] * count, make, lambda _order: threads)
    stack.push_async_callback(pool.close)
    await pool.start()
    return pool


@contextmanager
def _logging(level: LogLevel | None) -> Generator[None]:
    """Configures logging as asked, if it was. A program that has configured structlog is left alone."""
    if structlog.is_configured():
        yield
        return
    least = logging.CRITICAL if level is None else logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(least))
    try:
        yield
    finally:
        structlog.reset_defaults()


__all__ = ["LocalFederation", "start_local"]
