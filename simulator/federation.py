"""A coordinator and its peers in one process, as a test sees and steers them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from coordinator.engine.standings import is_aside, is_present
from coordinator.engine.state import ResumeRequested, RunStatus, RunSubmitted
from coordinator.server import RunningCoordinator
from coordinator.store import EventRow, RoundRow, RunRow, Store, WarningRow
from muster.errors import NotFoundError
from muster.model.modelfile import ModelFile, export_state
from muster.spec.model import RunSpec
from muster.transport.memory import MemoryHub

if TYPE_CHECKING:
    from torch import Tensor

    from coordinator.service import Coordinator

SETTLED = ("FINISHED", "FAILED", "CANCELLED", "PAUSED")
COORDINATOR = "coordinator"  # as fault hooks know it; peers by their names


class LocalFederation:
    """Made by `simulator.local.start_local`. The coordinator and the peers are called "coordinator", "peer-0",
    "peer-1"... by the network."""

    def __init__(
        self,
        hub: MemoryHub,
        start_coordinator: Callable[[], Awaitable[RunningCoordinator]],
        run_peer: Callable[[int], Coroutine[Any, Any, None]],
    ) -> None:
        self._hub = hub
        self._start_coordinator = start_coordinator
        self._run_peer = run_peer
        self._running: RunningCoordinator | None = None
        self._daemons: dict[int, asyncio.Task[None]] = {}
        self._submitted = 0

    # -- runs ------------------------------------------------------------------------------------------------

    async def submit(self, spec: RunSpec) -> str:
        """Gives the run id. Raises `ConfigError` if the spec names what is not installed."""
        self._submitted += 1
        run_id = f"local-{self._submitted}"
        event = RunSubmitted(run_id=run_id, spec=spec, spec_toml="", request_id=run_id)
        await self._coordinator.submissions.submit(event)
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

    async def until(self, kind: str, *, run_id: str | None = None, after: int = 0) -> EventRow:
        """The first event of this kind with a greater number than `after`, in the past or as soon as it comes."""
        while True:
            for event in await self._store.events(after=after):
                after = event.sequence
                if event.kind == kind and run_id in (None, event.run_id):
                    return event
            await self._store.wait_for_events(after)

    async def round(self, run_id: str, number: int) -> RoundRow:
        """A round with its assignments, as far as it has come."""
        row = await self._store.round(run_id, number)
        if row is None:
            raise NotFoundError("round.not_found", f"run {run_id!r} has no round {number}")
        return row

    def _starves(self, run_id: str) -> bool:
        """Whether it waits for peers, with some here that are set aside: nobody else will come."""
        run = self._coordinator.runs.get(run_id)
        if run is None or run.status is not RunStatus.RUNNING:  # what is decided may not be stored yet
            return False
        if run.rounds or run.evaluations or run.rest is not None:
            return False
        here = filter(is_present, self._coordinator.members.views().values())
        return any(is_aside(run, peer.peer_id) for peer in here)

    async def resume(self, run_id: str) -> None:
        """Resumes a paused run, and asks the peers that were set aside again. Raises `NotFoundError` for a run that has
        ended."""
        await self._coordinator.runs.post(ResumeRequested(run_id=run_id))

    async def warnings(self, run_id: str) -> list[WarningRow]:
        """What must not be silent of the run, newest last."""
        return await self._store.warnings(run_id)

    async def model(self, run_id: str) -> dict[str, Tensor]:
        """The newest model version, as a state dict for the plain PyTorch model."""
        row = await self._store.model(run_id)
        if row is None:
            raise NotFoundError("model.not_found", f"run {run_id!r} has no model yet")
        file = ModelFile(self._coordinator.blobs.path(row.digest))
        try:
            return export_state(file)
        finally:
            file.close()

    async def event_log(self) -> bytes:
        """Every event that there is, as JSON, one a line: of one seed on a `VirtualLoop` always the same bytes."""
        lines: list[bytes] = []
        after = 0
        while page := await self._store.events(after=after):
            lines += [json.dumps(asdict(event), sort_keys=True).encode() for event in page]
            after = page[-1].sequence
        return b"\n".join(lines)

    # -- processes -------------------------------------------------------------------------------------------

    async def start_coordinator(self) -> None:
        self._running = await self._start_coordinator()

    async def crash_coordinator(self) -> None:
        """It is gone with all that it had in memory; what is stored stays for `start_coordinator`."""
        self._hub.cut(COORDINATOR)
        await self.stop_coordinator()

    async def stop_coordinator(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            await running.stop()

    def start_peer(self, index: int) -> None:
        """A daemon with the state in its folder."""
        self._daemons[index] = asyncio.create_task(self._run_peer(index), name=f"peer-{index}")

    async def crash_peer(self, index: int) -> None:
        """Its connections break, without a goodbye; its folder stays as it is for `start_peer`."""
        self._hub.cut(f"peer-{index}")
        await self.stop_peers(index)

    async def stop_peers(self, *indices: int) -> None:
        """In order: they say goodbye. All of them, if none is named. What a daemon failed with is passed over."""
        daemons = [self._daemons.pop(index) for index in indices or list(self._daemons)]
        for daemon in daemons:
            daemon.cancel()
        await asyncio.gather(*daemons, return_exceptions=True)

    @property
    def _coordinator(self) -> Coordinator:
        if self._running is None:
            raise NotFoundError(
                "simulator.no_coordinator", "the coordinator is down", fix="start_coordinator()"
            )
        return self._running.coordinator

    @property
    def _store(self) -> Store:
        return self._coordinator.store
