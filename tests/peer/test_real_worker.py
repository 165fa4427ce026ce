"""The daemon with real worker processes: what the task's own code does there, and what it costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from muster.spec.model import RunSpec
from peer.work.orders import Site, train_order
from protos.v1 import membership_pb2 as pb

FAILED = pb.ASSIGNMENT_PHASE_FAILED
SPEC = {"task": "toy_task:Toy", "rounds": 9, "compression": {"up": "topk:0.5", "feedback": "ef14"}}


@pytest.fixture
async def real(bench: Any, toy_folder: Path, initial_model: Callable[..., tuple[Path, str, str]]) -> Any:
    """The bench with real workers and a real model; the file `mischief` tells the task how to misbehave."""
    path, digest, layout_digest = initial_model()
    bench.model = path.read_bytes()
    bench.coordinator.models[digest] = bench.model
    bench.make_worker = None
    bench.mischief = bench.folder / "mischief"
    bench.settings |= {"task_folders": (toy_folder,), "data": {"mischief": str(bench.mischief)}}
    bench.changes = {
        "layout_digest": layout_digest,
        "spec_json": RunSpec.model_validate(SPEC).canonical_json(),
        "seed": 5,
    }
    return bench


async def gone(pid: int) -> None:
    """Until the process has ended."""
    async with asyncio.timeout(20):
        await asyncio.to_thread(_wait, pid)


def _wait(pid: int) -> None:
    try:
        psutil.Process(pid).wait(timeout=15)
    except psutil.NoSuchProcess:
        return


async def test_a_task_may_fail_in_every_way_and_costs_only_the_assignment(real: Any) -> None:
    coordinator = real.coordinator
    real.start()
    session = await coordinator.session()

    real.mischief.write_text("raise at once")  # so that nobody waits for any training
    session.send(offer=real.offer(9, **real.changes))
    failure = (await coordinator.told("r.9.ada.1", FAILED)).failure
    assert (failure.error_id, failure.retry) == ("task.failed", False)
    assert "no luck at all" in failure.message

    real.mischief.write_text("raise")
    session.send(offer=real.offer(1, **real.changes))
    failure = (await coordinator.told("r.1.ada.1", FAILED)).failure
    assert (failure.error_id, failure.retry) == ("worker.failed", False)
    assert "no such luck" in failure.message
    assert "toy_task.py" in failure.traceback

    real.mischief.write_text("kill")  # itself, as the system would when memory runs out; once
    session.send(offer=real.offer(2, **real.changes))
    failure = (await coordinator.told("r.2.ada.1", FAILED)).failure
    assert (failure.error_id, failure.retry) == ("worker.crashed", True)
    assert "SIGKILL" in failure.message

    session.send(offer=real.offer(2, assignment_id="r.2.ada.2", **real.changes))
    await coordinator.until(lambda: "r.2.ada.2" in coordinator.committed)

    real.mischief.write_text("loop")
    session.send(offer=real.offer(3, deadline_seconds=6.0, **real.changes))
    failure = (await coordinator.told("r.3.ada.1", FAILED)).failure
    assert (failure.error_id, failure.retry) == ("worker.timeout", False)
    assert "in fit" in failure.traceback
    await gone(int(Path(f"{real.mischief}.pid").read_text()))

    Path(f"{real.mischief}.pid").unlink()
    session.send(offer=real.offer(4, **real.changes))
    pid = await asyncio.to_thread(_await_text, Path(f"{real.mischief}.pid"))
    session.send(cancel=pb.Cancel(assignment_id="r.4.ada.1", reason="the run was stopped"))
    await gone(int(pid))
    real.mischief.unlink()
    session.send(offer=real.offer(5, **real.changes))
    await coordinator.until(lambda: "r.5.ada.1" in coordinator.committed)
    assert set(coordinator.committed) == {"r.2.ada.2", "r.5.ada.1"}


def _await_text(path: Path) -> str:
    for _ in range(2000):
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.01)  # another process's file has nothing that could be waited for
    raise AssertionError(f"{path} was never written")


async def test_a_killed_daemon_computes_the_same_update(
    real: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained in this process, in a worker, and again after a restart: equal bytes, and state that goes on."""
    from peer.work import jobs

    # Sums over more threads round differently; other tests of this process may have chosen another number.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    coordinator = real.coordinator
    offer = real.offer(1, **real.changes)
    base = tmp_path / "base.safetensors"
    base.write_bytes(real.model)
    order = train_order(
        Site(name="ada", task_folders=tuple(str(path) for path in real.settings["task_folders"])),
        offer,
        RunSpec.model_validate(SPEC),
        data=real.settings["data"],
        device="cpu",
        base=base,
        stem=tmp_path / "here",
        state={},
    )
    here = jobs.train(asdict(order), lambda _: None)
    real.dies_at = "peer.trained"
    task = real.start()
    (await coordinator.session()).send(offer=offer)
    await real.reached("peer.trained")
    await real.stop(task)
    with real.store() as store:
        (held,) = store.held()
        assert held.update_digest == here["digest"]
        store.end(held.assignment_id, b"")  # as if the disk had lost the update: it has to be made again
    real.dies_at = ""
    task = real.start()
    await coordinator.session()
    await real.reached("peer.committed")
    assert bytes(coordinator.bodies["r.1.ada.1"]) == Path(order.update).read_bytes()
    await real.stop(task)
    with real.store() as store:
        residual = store.settle("r", 1)["residual"]
        assert residual.read_bytes() == Path(here["staged"]["residual"]).read_bytes()
        assert any(residual.read_bytes())
