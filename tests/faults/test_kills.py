"""Around every transition the coordinator is killed, and the run ends with the model that it would have had.

First it runs undisturbed, then again with the same seed and with SIGKILLs. The event log of both must keep every
promise, and the final models must be equal to the byte.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from simulator.processes import ProcessFederation

# In the order in which a run meets them, so that each restart arms the next one.
SUBMISSION = ("run.submitted", "run.started", "model.created")
ROUND = (
    "round.planned",
    "round.opened",
    "assignment.offered",
    "assignment.accepted",
    "assignment.preparing",
    "assignment.training",
    "assignment.uploading",
    "assignment.delivered",
    "round.aggregating",
    "round.committed",
    "evaluation.started",
    "evaluation.own",
    "evaluation.finished",
    "peer.connected",
)
END = ("run.finished",)
TRANSITIONS = [f"{kind}.{side}" for kind in (*SUBMISSION, *ROUND, *END) for side in ("before", "after")]
RUN_SECONDS_MAX = 240


async def finished(federation: ProcessFederation, run_id: str) -> Any:
    async def last() -> Any:
        async for run in federation.watch(run_id):
            if run.state in ("FINISHED", "FAILED", "CANCELLED"):
                return run
        return None

    run = await asyncio.wait_for(last(), RUN_SECONDS_MAX)
    assert run.state == "FINISHED", run.reason
    return run


@pytest.mark.timeout(600)
async def test_the_coordinator_is_killed_around_every_transition(
    federation: ProcessFederation, helpers: Any
) -> None:
    """One run after the other until every failpoint has killed once; each restart arms the next."""
    spec = helpers.digits_spec(4)
    reference = await helpers.undisturbed(federation, spec)
    waiting = list(TRANSITIONS)
    for number in range(len(TRANSITIONS)):
        if not waiting:
            break
        await federation.stop("coordinator", signal.SIGKILL)
        await federation.start_coordinator(env={"MUSTER_FAILPOINT": f"{waiting[0]}:kill"}, wait=False)
        request_id = f"run-{number}"
        submit = asyncio.create_task(federation.submit(spec, request_id=request_id))
        ended = None
        while ended is None:
            exit_ = asyncio.create_task(federation.exited("coordinator"))
            ended = await _exit_or_end(federation, exit_, submit)
            if ended is None:
                waiting.pop(0)
                env = {"MUSTER_FAILPOINT": f"{waiting[0]}:kill"} if waiting else {}
                await federation.start_coordinator(env=env, wait=False)
        assert ended.state == "FINISHED", ended.reason
        assert ended.model_digest == reference
    assert waiting == []
    await helpers.sound(federation)


async def _exit_or_end(
    federation: ProcessFederation, exit_: asyncio.Task[int], submit: asyncio.Task[str]
) -> Any:
    """The run when it has ended, or None as soon as the coordinator has killed itself."""

    async def end() -> Any:
        return await finished(federation, await asyncio.shield(submit))

    run = asyncio.create_task(end())
    done, _ = await asyncio.wait({exit_, run}, timeout=RUN_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
    assert done, "neither did the failpoint kill nor the run end"
    if run in done:
        exit_.cancel()
        return run.result()
    run.cancel()
    assert exit_.result() == -signal.SIGKILL
    return None
