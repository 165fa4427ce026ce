"""Run specs, and a coordinator whose peers are scripted."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import compressors
from coordinator.server import RunningCoordinator
from coordinator.store import EventRow, Store
from coordinator.workers import jobs
from exchange.payload import GroupSpec, Manifest, PayloadWriter
from muster.config.settings import CoordinatorConfig
from muster.errors import MusterError, TaskError
from muster.files.blobs import BlobStore
from muster.files.digests import checksum, digest_file
from muster.spec.model import RunSpec
from muster.transport import MemoryTransport
from muster.transport.base import Channel
from muster.wire import ADMIN, BEGIN_UPDATE, COMMIT_UPDATE, ENROL, SESSION, UPLOAD_UPDATE
from protos.v1 import admin_pb2, membership_pb2, updates_pb2
from protos.v1.tensors_pb2 import BlobHeader, Chunk


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


class ByHand:
    """A peer that does exactly what a test says."""

    def __init__(self, channel: Channel, name: str, folder: Path, secret: str = "") -> None:
        self.channel = channel
        self.name = name
        self.folder = folder
        self.credentials = membership_pb2.Credentials(peer_id=name, secret=secret or f"secret of {name} " * 2)
        self.outbox: asyncio.Queue[membership_pb2.SessionRequest | None] = asyncio.Queue()
        self.inbox: asyncio.Queue[membership_pb2.SessionResponse | None] = asyncio.Queue()
        self.reader: asyncio.Task[None] | None = None
        self.error: MusterError | None = None  # with which the session ended, if it did

    async def enrol(self) -> None:
        request = membership_pb2.EnrolRequest(name=self.name, secret=self.credentials.secret, device="cpu")
        await self.channel.unary(ENROL, request, timeout_seconds=10)

    async def connect(self, held: Sequence[str] = (), runs: Sequence[str] = ()) -> membership_pb2.Welcome:
        hello = membership_pb2.Hello(
            credentials=self.credentials, held_assignment_ids=held, held_run_ids=runs
        )
        self.outbox.put_nowait(membership_pb2.SessionRequest(hello=hello))
        self.reader = asyncio.create_task(self._read())
        return (await self.hear("welcome")).welcome

    async def _read(self) -> None:
        async def out() -> AsyncIterator[membership_pb2.SessionRequest]:
            while (message := await self.outbox.get()) is not None:
                yield message

        try:
            async for message in self.channel.stream(SESSION, out()):
                self.inbox.put_nowait(message)
        except MusterError as error:
            self.error = error
        finally:
            self.inbox.put_nowait(None)

    async def hear(self, kind: str) -> membership_pb2.SessionResponse:
        """The next message of this kind; others before it are passed over."""
        while True:
            message = await asyncio.wait_for(self.inbox.get(), 20)
            assert message is not None, f"the session ended before a {kind}"
            if message.WhichOneof("message") == kind:
                return message

    async def offer(self) -> membership_pb2.Assignment:
        return (await self.hear("offer")).offer

    def report(self, offer: membership_pb2.Assignment, phase: Any, **more: Any) -> None:
        report = membership_pb2.AssignmentReport(assignment_id=offer.assignment_id, phase=phase, **more)
        self.outbox.put_nowait(membership_pb2.SessionRequest(report=report))

    def heartbeat(self) -> None:
        self.outbox.put_nowait(membership_pb2.SessionRequest(heartbeat=membership_pb2.Heartbeat(sequence=1)))

    async def leave(self) -> None:
        self.outbox.put_nowait(None)
        if self.reader is not None:
            await asyncio.wait({self.reader}, timeout=10)

    # -- updates -------------------------------------------------------------------------------------------

    def write(self, offer: membership_pb2.Assignment, vector: Tensor, **manifest: Any) -> Path:
        codec = compressors.build("identity")
        facts: dict[str, Any] = {
            "run_id": offer.run_id,
            "round": offer.round,
            "assignment_id": offer.assignment_id,
            "base_digest": offer.work.base.digest,
            "layout_digest": offer.work.base.layout_digest,
            "groups": (GroupSpec(name="params", codec="identity", size=len(vector)),),
            "scalars": {"examples": 10.0},
            **manifest,
        }
        path = self.folder / f"{offer.assignment_id}.update"
        writer = PayloadWriter(path, Manifest(**facts))
        writer.append("params", codec.encode(vector, seed=0))
        writer.finish()
        return path

    def begin(
        self, offer: membership_pb2.Assignment, path: Path, **header: Any
    ) -> updates_pb2.BeginUpdateRequest:
        facts: dict[str, Any] = {
            "size_bytes": path.stat().st_size,
            "digest": digest_file(path),
            "layout_digest": offer.work.base.layout_digest,
            "run_id": offer.run_id,
            "round": offer.round,
            "assignment_id": offer.assignment_id,
            **header,
        }
        return updates_pb2.BeginUpdateRequest(credentials=self.credentials, header=BlobHeader(**facts))

    async def send(self, begin: updates_pb2.BeginUpdateRequest, *chunks: Chunk) -> int:
        """One upload stream; gives the offset that is held then."""

        async def out() -> AsyncIterator[updates_pb2.UploadUpdateRequest]:
            yield updates_pb2.UploadUpdateRequest(begin=begin)
            for chunk in chunks:
                yield updates_pb2.UploadUpdateRequest(chunk=chunk)

        answers = [each async for each in self.channel.stream(UPLOAD_UPDATE, out(), timeout_seconds=10)]
        return int(answers[-1].offset)

    async def commit(self, begin: updates_pb2.BeginUpdateRequest) -> updates_pb2.Receipt:
        request = updates_pb2.CommitUpdateRequest(
            credentials=begin.credentials,
            assignment_id=begin.header.assignment_id,
            digest=begin.header.digest,
        )
        return (await self.channel.unary(COMMIT_UPDATE, request, timeout_seconds=10)).receipt

    async def deliver(
        self, offer: membership_pb2.Assignment, path: Path, **header: Any
    ) -> updates_pb2.Receipt:
        begin = self.begin(offer, path, **header)
        await self.channel.unary(BEGIN_UPDATE, begin, timeout_seconds=10)
        await self.send(begin, *chunks_of(path))
        return await self.commit(begin)


def chunks_of(path: Path, size: int = 64) -> list[Chunk]:
    body = path.read_bytes()
    return [
        Chunk(offset=at, data=body[at : at + size], crc32c=checksum(body[at : at + size]))
        for at in range(0, len(body), size)
    ]


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

    async def peer(self, name: str) -> ByHand:
        peer = ByHand(self.channel(), name, self.folder)
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
