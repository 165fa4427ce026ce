"""Starting and stopping the coordinator process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import structlog

from coordinator.service import Coordinator
from coordinator.store import SqlStore, Store
from coordinator.store.lock import take_folders
from coordinator.wiring.wire import wire
from coordinator.workers.task_jobs import WORKER_USER
from muster.config.settings import CoordinatorConfig
from muster.files.blobs import BlobStore, FolderBlobStore
from muster.files.disk import make_folder
from muster.files.folderlock import FolderLock
from muster.files.folders import write_private
from muster.runtime.randomness import MACHINE
from muster.transport.base import Server, Transport
from muster.worker.base import Worker
from muster.worker.user import find_user

log = structlog.get_logger()

STOP_GRACE_SECONDS = 2.0


class RunningCoordinator:
    """A coordinator that serves: `start` gives one, `stop` ends it. Used by the command and by `simulator`."""

    def __init__(self, coordinator: Coordinator, server: Server, locks: Sequence[FolderLock]) -> None:
        self.coordinator = coordinator
        self._server = server
        self._locks = locks

    @property
    def address(self) -> str:
        return self._server.address

    @classmethod
    async def start(
        cls,
        config: CoordinatorConfig,
        transport: Transport,
        *,
        store: Store | None = None,
        blobs: BlobStore | None = None,
        make_worker: Callable[[], Worker] | None = None,
        random: Random = MACHINE,
    ) -> RunningCoordinator:
        """By default the store is the configured database, which is opened here, and blobs lie in the data folder. One
        that is given (`MemoryStore`, `MemoryBlobStore`) is the caller's to end, but for `Store.close`.
        What `make_worker` gives runs tasks' code (by default worker processes); `random` draws the ids.

        Raises `ConfigError` for an address that is taken or not allowed, `StateError` "store.in_use" if another
        coordinator has one of its folders, `StorageError` and `VersionError` of the store."""
        if config.worker_user is not None:
            find_user(
                config.worker_user, WORKER_USER
            )  # before anything is opened that would have to be closed
        folder = Path(config.data_dir)
        parts = [folder / "spool", *([] if blobs is not None else [folder / "blobs"])]
        for each in (folder, *parts):
            make_folder(each, "coordinator.data_dir, --data-dir")
        if store is None:
            store = await SqlStore.open(config.database_url)
        try:
            locks = take_folders(folder, parts, store.folder)
        except BaseException:
            await store.close()
            raise
        bound = ""
        coordinator = wire(
            config=config,
            store=store,
            blobs=blobs or FolderBlobStore(folder / "blobs"),
            make_worker=make_worker,
            random=random,
            address=lambda: bound,
        )
        try:
            await coordinator.start()
            server = await transport.serve(config.address, coordinator.routes)
        except BaseException:
            await coordinator.stop()
            _release(locks)
            raise
        bound = server.address
        return cls(coordinator, server, locks)

    async def stop(self) -> None:
        self.coordinator.sessions.close_all("the coordinator is stopping", reconnect=True)
        await self._server.stop(STOP_GRACE_SECONDS)
        await self.coordinator.stop()
        _release(self._locks)


def _release(locks: Sequence[FolderLock]) -> None:
    for lock in locks:
        lock.release()


async def serve(config: CoordinatorConfig) -> None:
    """Serves until SIGINT or SIGTERM. Writes the bound address to `coordinator.address` in the data folder."""
    from muster.transport import GrpcTransport

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    running = await RunningCoordinator.start(config, GrpcTransport())
    address_file = Path(config.data_dir) / "coordinator.address"
    write_private(address_file, running.address.encode())
    log.info("coordinator.serving", address=running.address, data_dir=str(config.data_dir))
    # Admission and aggregation need torch. It is loaded once the coordinator serves, so that a restart costs a second.
    warm = asyncio.create_task(asyncio.to_thread(__import__, "exchange.aggregation"))
    stopped = asyncio.create_task(stop.wait())
    try:
        ends: set[asyncio.Future[Any]] = {stopped, running.coordinator.failed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if running.coordinator.failed.done():
            raise running.coordinator.failed.result()
    finally:
        stopped.cancel()
        await asyncio.wait([warm])
        log.info("coordinator.stopping")
        address_file.unlink(missing_ok=True)
        await running.stop()
