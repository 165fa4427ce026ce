"""Whoever is killed, at any time, the run goes on, and ends with the model that it would have had.

As in `test_kills.py`; a file of its own, so that the two run at once.
"""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any

import pytest

from benchmarks.processes import children
from simulator.processes import ProcessFederation


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
    reference = await helpers.undisturbed(federation, spec)
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
