"""What one run's task does at the coordinator, however long it takes, is of that run alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from muster.spec.model import RoundTable
from protos.v1 import admin_pb2 as pb
from tests.coordinator.conftest import InProcessWorker, Stage

HANGS = 7  # the seed of runs of which one job never ends


class Hanging(InProcessWorker):
    """Of runs with that seed the job `job` ends when its host is closed, or its call cancelled."""

    job = ""
    began: asyncio.Event
    ended: asyncio.Event

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._closed = asyncio.Event()

    async def run(self, job: str, args: dict[str, Any], **more: Any) -> dict[str, Any]:
        if job == Hanging.job and args["seed"] == HANGS:
            Hanging.began.set()
            try:
                await self._closed.wait()
            finally:
                Hanging.ended.set()
        return await super().run(job, args, **more)

    async def close(self) -> None:
        self._closed.set()


@pytest.fixture
async def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    Hanging.began, Hanging.ended = asyncio.Event(), asyncio.Event()
    made = Stage(tmp_path, monkeypatch)
    monkeypatch.setattr("coordinator.workers.task_jobs.WorkerHost", Hanging)
    await made.start()
    yield made
    await made.stop()


async def test_a_run_that_is_never_prepared_holds_up_no_other(
    hanging: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hanging, "job", "init_model")
    first = await hanging.submit(seed=HANGS)
    await asyncio.wait_for(Hanging.began.wait(), 20)
    second = await hanging.submit()
    await hanging.until(second, "run.started")
    assert (await hanging.store.run(first)).state == "QUEUED"
    await hanging.call("StopRun", pb.StopRunRequest(run_id=first))
    await asyncio.wait_for(Hanging.ended.wait(), 20)  # what it was at ends with it


async def test_a_submission_that_hangs_holds_up_no_other_and_leaves_nothing_when_cancelled(
    hanging: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hanging, "job", "check_task")
    hangs = asyncio.create_task(hanging.submit(seed=HANGS))
    await asyncio.wait_for(Hanging.began.wait(), 20)
    run_id = await hanging.submit()
    await hanging.until(run_id, "run.started")
    hangs.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await hangs
    assert hanging.running is not None
    coordinator = hanging.running.coordinator
    await asyncio.wait_for(Hanging.ended.wait(), 20)
    assert set(coordinator.runs._schedules) == set(coordinator.runs) == {run_id}
    assert set(coordinator.tasks._workers._hosts) == {run_id}


@pytest.mark.parametrize("key", ["prepare_seconds", "deadline_seconds", "grace_seconds"])
def test_times_without_end_are_refused(key: str) -> None:
    for seconds in (1e9, 1e308, float("inf"), float("nan")):
        with pytest.raises(ValidationError, match=key):
            RoundTable.model_validate({key: seconds})
