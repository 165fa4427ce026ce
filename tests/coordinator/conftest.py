"""Run specs, and a coordinator whose peers are scripted."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.server import RunningCoordinator
from coordinator.store import EventRow, Store
from coordinator.workers import jobs
from muster.config.settings import CoordinatorConfig
from muster.errors import MusterError, TaskError
from muster.files.blobs import BlobStore
from muster.spec.model import RunSpec
from muster.transport import MemoryTransport
from muster.transport.base import Channel
from muster.wire import ADMIN
from protos.v1 import admin_pb2
from simulator.fake_peer import FakePeer, chunks_of


@pytest.fixture
def make_spec() -> Callable[..., RunSpec]:
    def make(**tables: Any) -> RunSpec:
        return RunSpec.model_validate({"task": "some.where:Task", "rounds": 2, **tables})

    return make


# -- a coordinator and peers that speak the protocol by hand ---------------------------------------------------

TASK = """
from torch import nn
from muster import Task

class Line(Task):
    def model(self):
        return nn.Linear(4, 1)

    def train_data(self, site):
        raise NotImplementedError

    def evaluate(self, model, site):
        return {"loss": 1.0}

class Broken(Line):
    def model(self):
        raise RuntimeError("no such layer")
"""


class InProcessWorker:
    """The coordinator's jobs without a process of their own, which would cost each test two seconds."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def run(self, job: str, args: dict[str, Any], **_: Any) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(jobs.JOBS[job], args, lambda _share: None)
        except MusterError:
            raise
        except Exception as error:
            raise TaskError("worker.failed", str(error), traceback=traceback.format_exc()) from error

    def forget(self, scope: str) -> None:
        pass

    async def close(self) -> None:
        pass


class Stage:
    """A running coordinator of which each test scripts the peers."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setattr("coordinator.workers.task_jobs.WorkerHost", InProcessWorker)
        (folder / "hand_task.py").write_text(TASK)
        self.transport = MemoryTransport()
        self.settings: dict[str, Any] = {
            "address": "127.0.0.1:0",
            "data_dir": folder / "coordinator",
            "allow": ("*",),
            "task_folders": (folder,),
            "heartbeat_seconds": 0.2,
            "lost_heartbeats": 600,
            "suspect_heartbeats": 500,
        }
        self.running: RunningCoordinator | None = None
        self.channels: list[Channel] = []

    async def start(
        self, *, store: Store | None = None, blobs: BlobStore | None = None, **settings: Any
    ) -> None:
        config = CoordinatorConfig.model_validate({**self.settings, **settings})
        self.running = await RunningCoordinator.start(config, self.transport, store=store, blobs=blobs)

    async def stop(self) -> None:
        for channel in self.channels:
            await channel.close()
        self.channels.clear()
        if self.running is not None:
            await self.running.stop()
            self.running = None

    @property
    def store(self) -> Store:
        assert self.running is not None
        return self.running.coordinator.store

    def channel(self, transport: Any = None) -> Channel:
        assert self.running is not None
        channel: Channel = (transport or self.transport).connect(self.running.address)
        self.channels.append(channel)
        return channel

    async def peer(self, name: str) -> FakePeer:
        peer = FakePeer(self.channel(), name, self.folder)
        await peer.enrol()
        await peer.connect()
        return peer

    async def call(self, method: str, request: Any) -> Any:
        return await self.channel().unary(ADMIN[method], request, timeout_seconds=10)

    chunks_of = staticmethod(chunks_of)

    async def submit(self, **tables: Any) -> str:
        spec = RunSpec.model_validate(
            {
                "task": "hand_task:Line",
                "rounds": 1,
                "evaluate": {"every": 0},
                "round": {"peers_min": 3, "quorum": 0.6, "deadline_seconds": 60, "grace_seconds": 30},
                **tables,
            }
        )
        request = admin_pb2.SubmitRunRequest(spec_json=spec.canonical_json())
        return str((await self.call("SubmitRun", request)).run.run_id)

    async def until(self, run_id: str, *kinds: str) -> EventRow:
        """The first event of one of these kinds, in the past or as soon as it comes."""
        after = 0
        while True:
            for event in await self.store.events(after=after, run_id=run_id or None):
                after = event.sequence
                if event.kind in kinds:
                    return event
            await asyncio.wait_for(self.store.wait_for_events(after), 20)

    async def ended(self, run_id: str) -> Any:
        await self.until(run_id, "run.finished", "run.failed", "run.cancelled")
        return (await self.call("GetRun", admin_pb2.GetRunRequest(run_id=run_id))).run

    async def assignment(self, assignment_id: str) -> Any:
        return await self.store.assignment(assignment_id)


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, monkeypatch)
    await made.start()
    yield made
    await made.stop()
