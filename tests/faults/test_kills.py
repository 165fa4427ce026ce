"""Whoever is killed, the run goes on, and ends with the model that it would have had.

Each test first runs undisturbed, then again with the same seed and with SIGKILLs. The event log of both must keep every
promise, and the final models must be equal to the byte.
"""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any

import pytest

from benchmarks.processes import children
from muster.spec.model import RunSpec
from simulator.processes import ProcessFederation

# In the order in which a run meets them, so that each restart arms the next one.
SUBMISSION = ("run.submitted", "run.started", "model.created")
ROUND = (
    "round.planned",
    "round.opened",
    "assignment.offered",
    "assignment.accepted",
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


async def undisturbed(federation: ProcessFederation, spec: RunSpec) -> str:
    run = await asyncio.wait_for(federation.run_to_end(spec), RUN_SECONDS_MAX)
    assert run.state == "FINISHED", run.reason
    return str(run.model_digest)


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
    reference = await undisturbed(federation, spec)
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


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("seed", "compression"),
    [
        # A residual, and a factor that the coordinator makes and hands to all.
        (1, {"up": "powersgd:2:common", "feedback": "ef14"}),
        # What both ends keep of a link, a codec for each layer, masks that both derive, and the step down.
        (2, {"up": "topk:0.1+int8+rice|topk:0.03+int8|int4+zstd", "feedback": "ef21", "down": "randk:0.5:unscaled"}),
    ],
    ids=["ef14", "ef21"],
)  # fmt: skip
async def test_daemons_workers_and_the_coordinator_are_killed_at_any_time(
    federation: ProcessFederation, helpers: Any, seed: int, compression: dict[str, Any]
) -> None:
    """Models equal to the byte prove every residual right: each update has the one before it in it."""
    spec = helpers.digits_spec(16, compression=compression)
    reference = await undisturbed(federation, spec)
    draw = random.Random(seed)
    run_id = await federation.submit(spec)
    kills = 0
    while (run := await federation.run(run_id)).state in ("QUEUED", "RUNNING"):
        await asyncio.sleep(draw.uniform(0.0, 0.15))  # somewhere within the round
        await _kill_one(federation, helpers, draw)
        kills += 1
        # The next kill comes when the run has got on, or it would never end.
        await federation.progressed(run_id, run.rounds_committed)
    assert run.state == "FINISHED", run.reason
    assert run.model_digest == reference
    assert kills >= 4
    await helpers.sound(federation)


async def _kill_one(federation: ProcessFederation, helpers: Any, draw: random.Random) -> None:
    index = draw.randrange(helpers.PEERS)
    victim = draw.choice(["daemon", "worker", "coordinator"])
    if victim == "coordinator":
        await federation.stop("coordinator", signal.SIGKILL)
        await federation.start_coordinator()
    elif victim == "daemon":
        await federation.stop(f"peer-{index}", signal.SIGKILL)
        helpers.start_peer(federation, index)
    else:
        for pid in children(federation.processes[f"peer-{index}"].pid)[1:]:
            federation.kill_process(pid)
