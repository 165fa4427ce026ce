"""The peer daemon: puts the parts together, keeps up the line, and ends in order."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from random import Random

from muster.config.settings import PeerConfig
from muster.runtime import clock
from muster.runtime.cores import Slots
from muster.runtime.randomness import MACHINE
from muster.transport import GrpcTransport
from muster.transport.base import Transport
from muster.worker.environment import worker_environment
from muster.worker.handover import Handover
from muster.worker.user import check_reach, find_user
from peer.connection.connection import CoordinatorConnection
from peer.store.disk_reserve import DiskReserve
from peer.store.thread import StoreThread
from peer.work.assignments import Assignments
from peer.work.devices import MakeWorker, WorkerPool, choose_devices, worker_maker
from peer.work.drawing import Drawing
from peer.work.job_runner import JobRunner
from peer.work.orders import Site
from peer.work.policy import load_policy
from peer.work.preparing import Preparations
from peer.work.threads import Threads
from peer.work.transfers import Transfers
from protos.v1 import membership_pb2 as pb

LEAVE_SECONDS_MAX = 1.0  # to say goodbye and hear the stream end
UNUSED_SECONDS_MAX = 30 * 24 * 3600.0  # what is kept for a run not worked on for so long is forgotten


class Peer:
    """`await Peer(config, transport).run()` takes part until it is cancelled or sent away.

    Raises `NotAllowedError` `peer.sent_away` if the coordinator closes the session for good, `ConfigError` on
    a wrong policy, address or worker_user, `StateError` `peer.in_use`, `AuthenticationError` if the name is another's,
    `VersionError` if the two sides speak different protocols. `workers` that it is given may serve other peers too, and
    are not started or closed here; they run as whom they were made to. `random` draws secret, ids and waits.
    """

    def __init__(
        self,
        config: PeerConfig,
        transport: Transport,
        *,
        make_worker: MakeWorker | None = None,
        workers: WorkerPool | None = None,
        random: Random = MACHINE,
    ) -> None:
        self._config = config
        self._transport = transport
        self._make_worker = make_worker
        self._shared = workers
        self._random = random

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            line, assignments = await self._open(stack)
            holding = asyncio.create_task(line.hold(assignments))
            try:
                await asyncio.shield(holding)
            except asyncio.CancelledError:
                line.leave("the peer is stopping")
                await asyncio.wait({holding}, timeout=LEAVE_SECONDS_MAX)
                raise
            finally:
                holding.cancel()
                await asyncio.wait({holding})

    async def _open(self, stack: AsyncExitStack) -> tuple[CoordinatorConnection, Assignments]:
        config = self._config
        policy = load_policy(config.policy, allow=config.allow, data=config.data)
        store = await StoreThread.open(config.data_dir, self._random)
        stack.push_async_callback(store.close)
        await store.do(store.store.forget_unused, before=clock.now() - UNUSED_SECONDS_MAX)
        secret = await store.do(store.store.secret, config.name)
        held = await store.do(store.store.held)
        workers = self._shared or await _start_workers(config, self._make_worker, stack)
        preparations = Preparations(workers=workers)
        stack.push_async_callback(preparations.close)
        channel = self._transport.connect(config.coordinator)
        stack.push_async_callback(channel.close)
        line = CoordinatorConnection(
            channel,
            pb.Credentials(peer_id=config.name, secret=secret),
            device=workers.devices[0],
            random=self._random,
        )
        site = _site(config)
        drawing = Drawing(site=site, policy=policy, workers=workers)
        room = DiskReserve(folder=config.data_dir, reserve_bytes=config.disk_reserve_bytes)
        courier = Transfers(room, line, workers.rebuild, drawing.draw)
        await courier.open(pb.Assignment.FromString(one.offer).work.base.digest for one in held)
        bench = JobRunner(
            site=site,
            policy=policy,
            workers=workers,
            preparations=preparations,
            courier=courier,
        )
        assignments = Assignments(bench=bench, store=store, courier=courier, room=room, tell=line.tell)
        stack.push_async_callback(assignments.close)
        assignments.resume(held)
        return line, assignments


async def _start_workers(config: PeerConfig, make: MakeWorker | None, stack: AsyncExitStack) -> WorkerPool:
    handover = None if config.worker_user is None else await _open_handover(config, config.worker_user)
    slots = Slots().take()
    stack.callback(slots.release)
    threads = Threads(threads=config.threads, slots=slots)
    make = make or worker_maker(
        config.data_dir / "logs",
        lambda: worker_environment(os.environ, more=config.worker_environment, threads=threads.now()),
        None if handover is None else handover.user,
    )
    devices = await choose_devices(config.device, make)
    threads.workers = len(devices)
    workers = WorkerPool(devices, make, threads.of, handover)
    stack.push_async_callback(workers.close)
    await workers.start()
    return workers


async def _open_handover(config: PeerConfig, said: str | int) -> Handover:
    user = find_user(said, "peer.worker_user")
    handover = Handover(config.data_dir, user)
    await asyncio.to_thread(handover.open)
    await asyncio.to_thread(
        check_reach, user, (*config.task_folders, handover.folder / "any"), "peer.worker_user"
    )
    return handover


def _site(config: PeerConfig) -> Site:
    return Site(
        name=config.name,
        task_folders=tuple(str(folder.absolute()) for folder in config.task_folders),
        attack=None if config.attack is None else config.attack.model_dump(),
    )


async def run_peer(
    config: PeerConfig, transport: Transport | None = None, *, workers: WorkerPool | None = None
) -> None:
    """The daemon as the command line runs it: over gRPC, ended in order by SIGTERM; raises what `Peer.run`
    does.

    With a transport it is one task of a program of somebody else's, and leaves the signals alone.
    """
    if transport is not None:
        await Peer(config, transport, workers=workers).run()
        return
    task = asyncio.create_task(Peer(config, GrpcTransport()).run())
    stopped = asyncio.Event()

    def stop() -> None:
        stopped.set()
        task.cancel()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        task.cancel()
        await asyncio.wait({task})
