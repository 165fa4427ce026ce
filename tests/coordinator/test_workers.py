"""Each run has a worker of its own at the coordinator: none waits for another's, and none outlives its run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coordinator.workers.workers import AT_WORK_MAX, CHECKS_MAX, IDLE_MAX, RunWorkers
from muster.errors import StateError, TaskError


class Host:
    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.runs: list[str] = []
        self.forgotten: list[str] = []
        self.closed = False

    async def run(self, job: str, args: Any, *, timeout_seconds: float, scope: str) -> dict[str, Any]:
        self.runs.append(scope)
        if job == "waits":
            await self.go.wait()
        if self.closed:
            raise TaskError("worker.cancelled", "it was cancelled")
        return {"job": job}

    def forget(self, scope: str) -> None:
        self.forgotten.append(scope)

    async def close(self) -> None:
        self.closed = True
        self.go.set()


class Bench:
    def __init__(self) -> None:
        self.made: list[Host] = []
        self._waits_no_more = False
        self.workers = RunWorkers(self._make)  # type: ignore[arg-type]

    def _make(self) -> Host:
        self.made.append(Host())
        if self._waits_no_more:
            self.made[-1].go.set()
        return self.made[-1]

    async def run(self, run_id: str, job: str = "done", **more: Any) -> dict[str, Any]:
        return await self.workers.run(run_id, job, {}, timeout_seconds=1, **more)

    async def begin(self, run_id: str, **more: Any) -> asyncio.Task[dict[str, Any]]:
        """A job that waits, once it has begun or waits for its turn."""
        found = asyncio.create_task(self.run(run_id, "waits", **more))
        await asyncio.sleep(0)
        return found

    def let_go(self) -> None:
        self._waits_no_more = True
        for host in self.made:
            host.go.set()

    @property
    def open(self) -> list[Host]:
        return [host for host in self.made if not host.closed]


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_a_job_that_hangs_holds_up_its_own_run_only(bench: Bench) -> None:
    hangs = await bench.begin("a")
    assert await bench.run("b") == {"job": "done"}
    assert [host.runs for host in bench.made] == [["a"], ["b"]]
    bench.workers.forget("a")  # it is cancelled
    with pytest.raises(TaskError):
        await hangs
    assert [host.closed for host in bench.made] == [True, False]


async def test_a_run_keeps_its_worker_and_leaves_it_to_the_next(bench: Bench) -> None:
    for run_id in "ab":
        await bench.run(run_id)
        await bench.run(run_id)
        bench.workers.forget(run_id)
    (host,) = bench.made
    assert (host.runs, host.forgotten, host.closed) == ([*"aabb"], ["a", "b"], False)


async def test_few_workers_wait_for_their_runs_next_job(bench: Bench) -> None:
    for number in range(2 * IDLE_MAX):
        await bench.run(str(number))
    await asyncio.sleep(0)
    assert [host.runs[0] for host in bench.open] == [str(n) for n in range(IDLE_MAX, 2 * IDLE_MAX)]
    await bench.run("0")  # gets another
    assert len(bench.made) == 2 * IDLE_MAX + 1


async def test_jobs_at_a_time_are_bounded_and_submissions_have_turns_of_their_own(bench: Bench) -> None:
    jobs = [await bench.begin(str(number)) for number in range(AT_WORK_MAX + 1)]
    assert len(bench.made) == AT_WORK_MAX
    checks = [await bench.begin(f"check {number}", checks=True) for number in range(CHECKS_MAX + 1)]
    assert len(bench.made) == AT_WORK_MAX + CHECKS_MAX
    bench.let_go()
    await asyncio.gather(*jobs, *checks)
    assert len(bench.made) == AT_WORK_MAX + CHECKS_MAX + 2


async def test_closing_ends_all_and_begins_nothing(bench: Bench) -> None:
    await bench.run("a")
    bench.workers.forget("a")
    await bench.run("b")
    await bench.run("c")
    hangs = await bench.begin("d")
    await bench.workers.close()
    assert bench.open == []
    with pytest.raises(TaskError):
        await hangs
    with pytest.raises(StateError):
        await bench.run("e")
