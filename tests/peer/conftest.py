"""A task of the tests' own, as a module in a folder; a scripted coordinator, and a peer daemon to try on
it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from muster.config.settings import PeerConfig
from muster.errors import TaskError
from muster.files.digests import digest_bytes
from muster.spec.model import RunSpec
from muster.transport.memory import MemoryHub, MemoryTransport
from peer.daemon import Peer
from peer.store.store import PeerStore
from protos.v1 import membership_pb2 as pb
from simulator.fake_coordinator import FakeCoordinator

TOY = '''
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Toy(muster.Task):
    """Two Gaussian blobs. `site.data` may name a file whose word makes training misbehave."""

    def model(self):
        width = self.options.get("width", 4)
        return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.1), nn.Linear(width, 2))

    def train_data(self, site):
        count = site.data.get("count", 41)
        generator = torch.Generator().manual_seed(site.data.get("index", 0))
        targets = torch.arange(count) % 2
        inputs = torch.randn(count, 3, generator=generator) + 2.0 * targets[:, None]
        return TensorDataset(inputs * site.data.get("scale", 1.0), targets)

    def test_data(self, site):
        return self.train_data(site)

    def fit(self, model, context):
        mischief = Path(context.site.data.get("mischief", "/nowhere"))
        word = mischief.read_text() if mischief.exists() else ""
        if word == "raise at once":
            raise RuntimeError("no luck at all")
        if context.trial:
            return None
        if word == "raise":
            raise RuntimeError("no such luck")
        if word == "kill":
            mischief.unlink()
            os.kill(os.getpid(), 9)
        if word == "loop":
            Path(context.site.data["mischief"] + ".pid").write_text(str(os.getpid()))
            while True:
                time.sleep(0.01)
        if word in ("own", "huge"):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 1.0 if word == "own" else 1e38
            return muster.FitReport(examples=5, steps=1, metrics={"own": 2.0})
        if word == "bad report":
            return {"examples": 5}
        return None
'''


@pytest.fixture
def toy_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with the module `toy_task`, whose class `Toy` is a task; the next test's is another."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "toy_task.py").write_text(TOY)
    yield folder
    sys.path[:] = [place for place in sys.path if place != str(folder.resolve())]
    sys.modules.pop("toy_task", None)


@pytest.fixture
def initial_model(tmp_path: Path, toy_folder: Path) -> Callable[..., tuple[Path, str, str]]:
    """Writes an initial model of `Toy`: its path, digest and layout digest."""

    def make(**options: Any) -> tuple[Path, str, str]:
        import torch

        from muster.model.modelfile import layout_of, write_initial
        from muster.task.loading import load_task

        task = load_task("toy_task:Toy", [toy_folder], options)
        torch.manual_seed(1)
        model = task.model()
        layout = layout_of(model)
        path = tmp_path / f"initial-{len(list(tmp_path.glob('initial-*')))}.safetensors"
        return path, write_initial(path, layout, model).digest, layout.digest

    return make


class FakeWorker:
    """Does no work: an update is the order's seed and the present state; the new state counts the updates
    made. It draws nothing, so that first versions are fetched."""

    def __init__(self, device: str) -> None:
        self.orders: list[dict[str, Any]] = []
        self.gate = asyncio.Event()  # jobs wait for it
        self.gate.set()
        self.errors: list[Exception] = []  # raised by the next jobs, in order
        self.started = asyncio.Event()
        self.forgotten: list[str] = []
        self.is_ready = False
        self.preparations = 0
        self.preparation_errors: list[Exception] = []
        self.stopped = asyncio.Event()  # set when a preparation is cancelled
        self.preparing = asyncio.Event()  # set when it begins to
        self.prepares = asyncio.Event()  # it is done with that when this is set
        self.prepares.set()
        self.stateless = False  # whether updates hand on nothing

    async def start(self) -> None:
        pass

    async def run(self, job: str, args: Mapping[str, Any], *, timeout_seconds: float, **_: Any) -> Any:
        if job == "draw":
            raise TaskError("worker.failed", "this worker draws nothing")
        if job == "is_ready":
            return {"ready": self.is_ready}
        if job == "get_ready":
            self.preparations += 1
            self.preparing.set()
            try:
                await self.prepares.wait()
            except asyncio.CancelledError:
                self.stopped.set()
                raise
            if self.preparation_errors:
                raise self.preparation_errors.pop(0)
            self.is_ready = True
            return {}
        self.orders.append({"job": job, "timeout_seconds": timeout_seconds, **args})
        self.started.set()
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        if job == "evaluate":
            return {"metrics": {"accuracy": 0.5}, "examples": 7}
        count = int(Path(args["state"]["residual"]).read_text()) if args["state"] else 0
        body = f"update {args['seed']} after {count}".encode()
        Path(args["update"]).write_bytes(body)
        staged = Path(f"{args['staged']}.0")
        staged.write_text(str(count + 1))
        return {
            "digest": digest_bytes(body),
            "size_bytes": len(body),
            "examples": 3,
            "steps": 1,
            "staged": {} if self.stateless else {"residual": str(staged)},
        }

    def forget(self, scope: str) -> None:
        self.forgotten.append(scope)

    async def close(self) -> None:
        pass


class Bench:
    """A peer daemon over a memory transport, with a fake coordinator and, unless told otherwise, a fake
    worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coordinator = FakeCoordinator()
        self.worker = FakeWorker("cpu")
        self.make_worker: Callable[[str], Any] | None = lambda device: self.worker
        self.hub = MemoryHub()
        self.settings: dict[str, Any] = {"allow": ("toy_task:Toy",)}
        self.model = b"the base model"
        self.dies_at = ""  # the failpoint at which the daemon's task ends, as dead as a task can be
        self._reached: list[str] = []
        self._step = asyncio.Event()
        self._server: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    def failpoint(self, name: str) -> None:
        """Stands in for the daemon's own failpoints."""
        self._reached.append(name)
        self._step.set()
        self._step = asyncio.Event()
        if name == self.dies_at:
            raise asyncio.CancelledError

    async def reached(self, name: str, times: int = 1) -> None:
        """Until the daemons of this bench have come by a failpoint so many times in all."""
        async with asyncio.timeout(20):
            while self._reached.count(name) < times:
                await self._step.wait()

    async def serve(self) -> None:
        self.coordinator.models[digest_bytes(self.model)] = self.model
        self._server = await MemoryTransport(self.hub).serve("coordinator:1", self.coordinator.routes())

    async def unserve(self) -> None:
        await self._server.stop(0.0)

    def start(self, name: str = "ada") -> asyncio.Task[None]:
        settings = {
            "name": name,
            "coordinator": "coordinator:1",
            "data_dir": self.folder / name,
            "policy": self.folder / "policy.toml",
            "device": "cpu",
            **self.settings,
        }
        peer = Peer(
            PeerConfig.model_validate(settings), MemoryTransport(self.hub), make_worker=self.make_worker
        )
        task = asyncio.create_task(peer.run())
        self._tasks.append(task)
        return task

    async def stop(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task})

    async def close(self) -> None:
        for task in self._tasks:
            await self.stop(task)
        await self.unserve()

    def offer(self, number: int = 1, **changes: Any) -> pb.Assignment:
        """An offer of round `number`."""
        values: dict[str, Any] = {
            "assignment_id": f"r.{number}.ada.1",
            "run_id": "r",
            "round": number,
            "spec_json": RunSpec.model_validate({"task": "toy_task:Toy", "rounds": 9}).canonical_json(),
            "seed": number,
            "deadline_seconds": 60.0,
            "counted_round": number - 1,
        }
        work = pb.Work(
            role=changes.pop("role", "train"),
            base=pb.Base(
                digest=changes.pop("base_digest", digest_bytes(self.model)),
                version=changes.pop("base_version", number - 1),
                size_bytes=changes.pop("base_size_bytes", len(self.model)),
                layout_digest=changes.pop("layout_digest", "1a"),
            ),
            params_json=changes.pop("params_json", ""),
        )
        return pb.Assignment(work=work, **{**values, **changes})

    def store(self, name: str = "ada") -> PeerStore:
        """The peer's store, when its daemon is down."""
        return PeerStore(self.folder / name)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    monkeypatch.setattr("peer.work.assignments.failpoint", bench.failpoint)
    monkeypatch.setattr("peer.work.job_runner.failpoint", bench.failpoint)
    await bench.serve()
    yield bench
    await bench.close()
