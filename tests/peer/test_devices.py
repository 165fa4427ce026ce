"""Devices are found without torch in the daemon, and workers are shared in order of arrival."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from muster.errors import TaskError
from peer.work import devices
from peer.work.devices import WorkerPool, choose_devices


class Probe:
    """A worker that is only asked what devices there are."""

    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        self._answer = answer
        self.closed = False

    async def start(self) -> None:
        pass

    async def run(self, job: str, args: Any, *, timeout_seconds: float, **_: Any) -> dict[str, Any]:
        assert job == "describe"
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def forget(self, scope: str) -> None:
        pass

    async def close(self) -> None:
        self.closed = True


def test_the_daemon_does_not_import_torch() -> None:
    code = "import sys, peer.daemon; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


async def test_a_named_device_is_taken_at_its_word() -> None:
    probe = Probe(AssertionError("nobody asks"))
    assert await choose_devices("cuda:1", lambda device: probe) == ["cuda:1"]


async def test_without_a_gpu_in_sight_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "may_have_gpu", lambda: False)
    probe = Probe(AssertionError("nobody asks"))
    assert await choose_devices("auto", lambda device: probe) == ["cpu"]


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ({"devices": ["cuda:0", "cuda:1"]}, ["cuda:0", "cuda:1"]),
        ({"devices": ["mps"]}, ["mps"]),
        (TaskError("worker.failed", "torch is broken here"), ["cpu"]),
    ],
)
async def test_torch_is_asked_where_there_may_be_one(
    monkeypatch: pytest.MonkeyPatch, answer: Any, chosen: list[str]
) -> None:
    monkeypatch.setattr(devices, "may_have_gpu", lambda: True)
    probe = Probe(answer)
    assert await choose_devices("auto", lambda device: probe) == chosen
    assert probe.closed


async def test_one_worker_a_device_in_order_of_arrival() -> None:
    pool = WorkerPool(["cuda:0", "cuda:1"], lambda device: Probe({}))
    order: list[tuple[int, str]] = []
    busy, release = asyncio.Event(), asyncio.Event()

    async def job(number: int) -> None:
        async with pool.desk() as desk:
            order.append((number, desk.device))
            if len(order) == 2:
                busy.set()
            await release.wait()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(job(number))
        await busy.wait()
        assert order == [(0, "cuda:0"), (1, "cuda:1")]
        release.set()
    assert [number for number, _ in order] == [0, 1, 2, 3]
    await pool.close()


async def test_of_several_idle_workers_the_one_that_worked_last_is_taken() -> None:
    pool = WorkerPool(["cuda:0", "cuda:1"], lambda device: Probe({}))
    for _ in range(3):
        async with pool.desk() as desk:
            assert desk.device == "cuda:0"
    async with pool.desk(), pool.desk() as other:
        assert other.device == "cuda:1"
