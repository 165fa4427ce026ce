"""A whole federation in one process, for users' own tests: no sockets, no command, the real thing otherwise.

    async with start_local(folder, peers=3, allow=["my.tasks:Flowers"]) as federation:
        run = await federation.run_to_end(spec)
        weights = await federation.model(run.run_id)

The coordinator and the peers are those that `muster serve` and `muster join` run; they talk protobuf over the
in-memory transport and train in worker processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.engine.standings import is_aside, is_present
from coordinator.engine.state import ResumeRequested, RunSubmitted
from coordinator.server import RunningCoordinator
from coordinator.store import RoundRow, RunRow, WarningRow
from muster.config import CoordinatorConfig, PeerConfig
from muster.errors import NotFoundError
from muster.folders import write_private
from muster.modelfile import ModelFile, export_state
from muster.spec.model import RunSpec
from muster.transport import MemoryTransport
from peer.daemon import run_peer

if TYPE_CHECKING:
    from torch import Tensor

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
        await self._running.coordinator.submit_run(event)
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
        if run is None or run.rounds or run.evaluations or run.rest is not None:
            return False
        here = filter(is_present, self._running.coordinator.peer_views().values())
        return any(is_aside(run, peer.peer_id) for peer in here)

    async def resume(self, run_id: str) -> None:
        """Goes on with a paused run, and asks again whoever was set aside. Raises `NotFoundError` for a run that has
        ended."""
        await self._running.coordinator.post(ResumeRequested(run_id=run_id))

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
) -> AsyncGenerator[LocalFederation]:
    """A coordinator and `peers` peers, named peer-0, peer-1, ..., with their state in `folder`.

    `data[i]` is peer i's `site.data` (default: its index and the count); `attacks` makes some of them lie, e.g.
    `{0: {"name": "sign-flip"}}`; `coordinator` has more of its settings.
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
    running = await RunningCoordinator.start(config, transport)
    daemons: list[asyncio.Task[None]] = []
    try:
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
            daemons.append(asyncio.create_task(run_peer(settings, transport)))
        yield LocalFederation(running)
    finally:
        for daemon in daemons:
            daemon.cancel()
        await asyncio.gather(*daemons, return_exceptions=True)
        await running.stop()


__all__ = ["LocalFederation", "start_local"]
