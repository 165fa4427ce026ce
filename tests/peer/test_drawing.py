"""What the peer makes of a first version that it draws: the file, and when it fetches after all."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from muster.errors import StorageError, TaskError
from muster.files.digests import digest_bytes
from muster.model.initial import draw_version
from muster.seeds import initial_seed
from muster.spec.model import RunSpec
from muster.task.loading import load_task
from peer.work import jobs
from protos.v1 import membership_pb2 as pb
from protos.v1.models_pb2 import ModelDelta, PlanModelResponse

OPTIONS = {"width": 7}


KNOTTED = """
from torch import nn

import muster


class Knot(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.known = [self]


class Knotted(muster.Task):
    def model(self):
        return Knot()

    def train_data(self, site):
        raise NotImplementedError
"""


def drawing(folder: Path, target: Path, seed: int, **facts: Any) -> dict[str, Any]:
    return {
        "run_id": "r",
        "task": "toy_task:Toy",
        "task_folders": (str(folder),),
        "options": OPTIONS,
        "site_name": "ada",
        "site_data": {"index": 3},
        "site_seed": 1,
        "device": "cpu",
        "base": str(target),
        "seed": seed,
        **facts,
    }


def drawn(folder: Path, target: Path, seed: int) -> dict[str, Any]:
    return jobs.draw(drawing(folder, target, seed), lambda _: None)


def test_both_ends_write_the_same_bytes(toy_folder: Path, tmp_path: Path) -> None:
    seed = initial_seed(1)
    here, there, other = tmp_path / "here", tmp_path / "there", tmp_path / "other"
    made = drawn(toy_folder, here, seed)
    draw_version(load_task("toy_task:Toy", [toy_folder], OPTIONS), seed, there)
    assert here.read_bytes() == there.read_bytes()
    assert made["digest"] == digest_bytes(here.read_bytes())
    assert drawn(toy_folder, here, seed) == made  # again, with the module of the first time in memory
    assert drawn(toy_folder, other, seed + 1) != made


def test_never_are_there_two_modules_even_of_a_task_whose_module_refers_to_itself(tmp_path: Path) -> None:
    task = Path(tmp_path / "knotted_task.py")
    task.write_text(KNOTTED)
    order = drawing(tmp_path, tmp_path / "version", 1, task="knotted_task:Knotted", options={})
    for _ in range(2):
        jobs.draw(order, lambda _: None)
    alive = [each for each in gc.get_objects() if type(each).__name__ == "Knot"]
    assert len(alive) == 1


class Artist:
    """The bench's worker, which draws too; `makes` is what comes out, or why nothing does, or None: it never ends."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self.makes: bytes | Exception | None = b""
        self.draws: list[Mapping[str, Any]] = []
        self.seconds: list[float] = []
        self.halfway, self.stopped = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    async def run(self, job: str, args: Mapping[str, Any], *, timeout_seconds: float, **more: Any) -> Any:
        if job != "draw":
            return await self._worker.run(job, args, timeout_seconds=timeout_seconds, **more)
        self.draws.append(args)
        self.seconds.append(timeout_seconds)
        Path(args["base"]).write_bytes(b"half of")
        if isinstance(self.makes, Exception):
            raise self.makes
        while self.makes is None:
            self.halfway.set()
            try:
                await asyncio.sleep(60.0)
            finally:
                self.stopped.set()
        Path(args["base"]).write_bytes(self.makes)
        return {"digest": digest_bytes(self.makes)}


@pytest.fixture
def artist(bench: Any) -> Artist:
    bench.worker = made = Artist(bench.worker)
    return made


@pytest.mark.parametrize(
    ("makes", "reason"),
    [
        (None, ""),
        (b"another model", "it came out otherwise"),
        (TaskError("worker.crashed", "the worker was ended by SIGKILL"), "SIGKILL"),
    ],
    ids=["same", "other", "crashed"],
)
async def test_what_does_not_come_out_the_same_is_fetched(
    bench: Any, artist: Artist, makes: bytes | Exception | None, reason: str
) -> None:
    coordinator = bench.coordinator
    spec = RunSpec.model_validate({"task": "toy_task:Toy", "rounds": 9, "seed": 77})
    artist.makes = bench.model if makes is None else makes
    with capture_logs() as logs:
        bench.start()
        offer = bench.offer(1, spec_json=spec.canonical_json())
        (await coordinator.session()).send(offer=offer)
        await coordinator.until(lambda: "r.1.ada.1" in coordinator.committed)
    assert coordinator.fetches == (0 if makes is None else 1)
    (order,) = artist.draws
    assert order["seed"] == initial_seed(77)
    (trained,) = artist.orders
    assert 50.0 < trained["timeout_seconds"] <= 58.0  # of 60
    assert (
        1700.0 < artist.seconds[0] <= 1798.0
    )  # of 1800: it belongs to the preparation, `Task.model` may be slow
    told = [each["reason"] for each in logs if each["event"] == "model.not_drawn"]
    assert len(told) == (0 if makes is None else 1)
    assert all(reason in each for each in told)


@pytest.mark.parametrize(
    ("makes", "draws"),
    [
        (b"another model", 1),
        (TaskError("worker.failed", "job 'draw' raised RuntimeError", traceback="in model()"), 1),
        (TaskError("worker.crashed", "the worker was ended by SIGKILL", signal="SIGKILL"), 2),
        (StorageError("storage.full", "no room is left"), 2),
    ],
    ids=["otherwise", "task failed", "killed", "disk full"],
)
async def test_what_the_task_did_not_make_once_is_not_drawn_again(
    bench: Any, artist: Artist, makes: bytes | Exception, draws: int
) -> None:
    coordinator = bench.coordinator
    artist.makes = makes
    coordinator.models.clear()
    with capture_logs() as logs:
        bench.start()
        session = await coordinator.session()
        session.send(offer=bench.offer(1))
        await coordinator.told("r.1.ada.1", pb.ASSIGNMENT_PHASE_FAILED)  # it cannot be fetched either
        coordinator.models[digest_bytes(bench.model)] = bench.model
        session.send(offer=bench.offer(1, assignment_id="r.1.ada.2"))
        await coordinator.until(lambda: "r.1.ada.2" in coordinator.committed)
    assert (coordinator.fetches, len(artist.draws)) == (1, draws)
    told = [each for each in logs if each["event"] == "model.not_drawn"]
    assert len(told) == draws
    assert told[0]["traceback"] == (getattr(makes, "fields", None) or {}).get("traceback", "")


async def test_a_drawing_that_took_all_the_time_is_what_is_told(bench: Any, artist: Artist) -> None:
    coordinator = bench.coordinator
    artist.makes = TaskError("worker.timeout", "job 'draw' was not done after 58 s", traceback="in model()")
    bench.start()
    session = await coordinator.session()
    session.send(offer=bench.offer(1))
    failed = await coordinator.told("r.1.ada.1", pb.ASSIGNMENT_PHASE_FAILED)
    assert (failed.failure.error_id, failed.failure.traceback) == ("worker.timeout", "in model()")
    assert coordinator.fetches == 0
    session.send(offer=bench.offer(1, assignment_id="r.1.ada.2"))
    await coordinator.until(lambda: "r.1.ada.2" in coordinator.committed)
    assert (coordinator.fetches, len(artist.draws)) == (1, 1)


async def test_who_cannot_draw_the_first_version_fetches_a_later_one_whole(
    bench: Any, artist: Artist
) -> None:
    coordinator = bench.coordinator
    artist.makes = b"another model"
    offer = bench.offer(2)
    coordinator.plans[offer.work.base.digest] = PlanModelResponse(
        base_digest="ab" * 32, deltas=[ModelDelta(digest="cd" * 32, size_bytes=5)]
    )
    coordinator.models["cd" * 32] = b"delta"
    bench.start()
    (await coordinator.session()).send(offer=offer)
    await coordinator.until(lambda: offer.assignment_id in coordinator.committed)
    assert (coordinator.fetches, len(artist.draws)) == (1, 1)  # the version, and none of the deltas


async def test_a_cancelled_assignment_stops_waiting_for_the_drawing(bench: Any, artist: Artist) -> None:
    coordinator = bench.coordinator
    artist.makes = bench.model
    artist.gate.clear()
    bench.start()
    session = await coordinator.session()
    session.send(offer=bench.offer(2, run_id="other"))  # at the only worker
    async with asyncio.timeout(20):
        await artist.started.wait()
    session.send(offer=bench.offer(1, base_digest="ab" * 32))
    await coordinator.told("r.1.ada.1", pb.ASSIGNMENT_PHASE_ACCEPTED)
    session.send(cancel=pb.Cancel(assignment_id="r.1.ada.1", reason="the run was stopped"))
    artist.gate.set()
    await coordinator.until(lambda: "r.2.ada.1" in coordinator.committed)
    session.send(offer=bench.offer(3, run_id="third"))
    await coordinator.until(lambda: "r.3.ada.1" in coordinator.committed)
    assert artist.draws == []


@pytest.mark.parametrize("number", [1, 2], ids=["to train on", "to follow deltas from"])
async def test_a_cancelled_drawing_leaves_no_file(bench: Any, artist: Artist, number: int) -> None:
    coordinator = bench.coordinator
    artist.makes = None
    offer = bench.offer(number)
    coordinator.plans[offer.work.base.digest] = PlanModelResponse(
        base_digest="ab" * 32, deltas=[ModelDelta(digest="cd" * 32, size_bytes=5)]
    )
    bench.start()
    session = await coordinator.session()
    session.send(offer=offer)
    arriving = bench.folder / "ada" / "arriving"
    async with asyncio.timeout(20):
        await artist.halfway.wait()
        assert len(list(arriving.iterdir())) == 1
        session.send(cancel=pb.Cancel(assignment_id=offer.assignment_id, reason="the run was stopped"))
        await artist.stopped.wait()
    assert list(arriving.iterdir()) == []
