"""A whole federation in one process, for users' own tests: no sockets, no command, the real thing otherwise.

    async with start_local(folder, peers=3, allow=["my.tasks:Flowers"]) as federation:
        run = await federation.run_to_end(spec)
        weights = await federation.model(run.run_id)

The coordinator and the peers are those that `muster serve` and `muster join` run; they talk protobuf over the
in-memory transport. On asyncio's own loop they train in worker processes and store on the disk. On a
`simulator.virtual_loop.VirtualLoop` they train in this process, and the coordinator stores in memory: the same seed
and the same network then give the same events to the byte.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import structlog

from coordinator.server import RunningCoordinator
from coordinator.store import MemoryStore
from muster.config.settings import CoordinatorConfig, LogLevel, PeerConfig
from muster.files.blobs import MemoryBlobStore
from muster.files.folders import write_private
from muster.runtime.cores import said_threads, share, usable_cores
from muster.runtime.randomness import MACHINE
from muster.seeds import derive_random
from muster.transport import MemoryTransport
from muster.transport.faults import FaultHook
from muster.transport.memory import MemoryHub
from muster.worker.base import Worker
from muster.worker.environment import worker_environment
from muster.worker.host import WorkerHost
from peer.daemon import Peer
from peer.work.devices import JOBS_MODULE, REST_JOB, WorkerPool
from simulator.federation import COORDINATOR, LocalFederation
from simulator.inline_worker import InlineWorker, inline_jobs
from simulator.virtual_loop import VirtualLoop

WORKERS_MIN = 4  # so that one slow peer of a few does not hold up the others


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
    network: FaultHook | None = None,
    seed: int | None = None,
    work_seconds_max: float = 0.0,
) -> AsyncGenerator[LocalFederation]:
    """A coordinator and `peers` peers, named peer-0, peer-1, ..., with their state in `folder`, on the running loop.
    A folder that does not exist is made.

    `data[i]` is peer i's `site.data` (default: its index and the count); `attacks` makes some of them lie, e.g.
    `{0: {"name": "sign-flip"}}`; `coordinator` has more of its settings. `network` says what befalls messages, as a
    `simulator.network.Network` does. From `seed` come ids, secrets and waits (default: the virtual loop's seed, or the
    machine's randomness).

    At most `workers` processes train (default: one for each core, but no fewer than `WORKERS_MIN`); more peers than
    that share them, which costs time and makes the same bytes. What a task keeps in its module, peers that share a
    process share too. On a `VirtualLoop` there are no processes: every peer trains by itself here, and each of its jobs
    takes up to `work_seconds_max` of the loop's time. Nothing is logged unless `log_level` is given, or the program has
    configured structlog itself.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    policy = folder / "policy.toml"
    write_private(policy, "".join(f'[[allow]]\ntask = "{task}"\n' for task in allow).encode())
    config = _coordinator_config(folder, allow, task_folders, coordinator or {})

    def peer_config(index: int, address: str) -> PeerConfig:
        return PeerConfig.model_validate(
            {
                "name": f"peer-{index}",
                "coordinator": address,
                "data_dir": folder / f"peer-{index}",
                "policy": policy,
                "device": "cpu",
                "data": dict(data[index]) if data else {"index": index, "count": peers},
                "task_folders": tuple(task_folders),
                "attack": (attacks or {}).get(index),
            }
        )

    async with AsyncExitStack() as stack:
        stack.enter_context(_logging(log_level))
        parts = _Parts(network, seed, work_seconds_max)
        if parts.inline:
            stack.enter_context(inline_jobs(peers))
            if parts.blobs is not None:
                stack.callback(parts.blobs.close)
            pool = None
        else:
            pool = await _shared(folder, peers, workers, stack)
        address = config.address

        async def start_coordinator() -> RunningCoordinator:
            nonlocal address
            running = await parts.start_coordinator(config.model_copy(update={"address": address}))
            address = running.address
            return running

        async def run_peer(index: int) -> None:
            await parts.run_peer(peer_config(index, address), pool)

        federation = LocalFederation(parts.hub, start_coordinator, run_peer)
        await federation.start_coordinator()
        stack.push_async_callback(federation.stop_coordinator)
        stack.push_async_callback(federation.stop_peers)
        for index in range(peers):
            federation.start_peer(index)
        yield federation


def _coordinator_config(
    folder: Path, allow: Sequence[str], task_folders: Sequence[Path], more: Mapping[str, Any]
) -> CoordinatorConfig:
    return CoordinatorConfig.model_validate(
        {
            "address": "127.0.0.1:0",
            "data_dir": folder / "coordinator",
            "allow": tuple(allow),
            "task_folders": tuple(task_folders),
            **more,
        }
    )


class _Parts:
    """What a federation on the running loop is made of."""

    def __init__(self, network: FaultHook | None, seed: int | None, work_seconds_max: float) -> None:
        loop = asyncio.get_running_loop()
        self.inline = isinstance(loop, VirtualLoop)
        self._seed = loop.seed if seed is None and isinstance(loop, VirtualLoop) else seed
        self._work_seconds_max = work_seconds_max
        self._starts = itertools.count()  # no two daemons draw alike, not even those of one peer
        self.hub = MemoryHub(faults=network)
        self._store = MemoryStore() if self.inline else None
        self.blobs = MemoryBlobStore() if self.inline else None

    async def start_coordinator(self, config: CoordinatorConfig) -> RunningCoordinator:
        from coordinator.workers.jobs import JOBS

        random = self._random(COORDINATOR)
        return await RunningCoordinator.start(
            config,
            MemoryTransport(self.hub, name=COORDINATOR),
            store=self._store,
            blobs=self.blobs,
            make_worker=self._maker(JOBS, COORDINATOR, random),
            random=random,
        )

    async def run_peer(self, config: PeerConfig, pool: WorkerPool | None) -> None:
        from peer.work.jobs import JOBS

        random = self._random(config.name)
        make = self._maker(JOBS, config.name, random)
        if make is not None:
            pool = WorkerPool(["cpu"], lambda _: make())
        transport = MemoryTransport(self.hub, name=config.name)
        await Peer(config, transport, workers=pool, random=random).run()

    def _random(self, name: str) -> Random:
        return MACHINE if self._seed is None else derive_random(self._seed, name, next(self._starts))

    def _maker(self, jobs: Any, label: str, random: Random) -> Callable[[], Worker] | None:
        if not self.inline:
            return None
        return lambda: InlineWorker(
            jobs, label=label, seconds=lambda: random.uniform(0.0, self._work_seconds_max)
        )


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
