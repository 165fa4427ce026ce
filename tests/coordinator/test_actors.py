"""Each event says who caused it: a peer or an admin what is their own, the engine what follows from it."""

from __future__ import annotations

from typing import Any

import torch

from coordinator.store import MemoryStore
from muster.wire import ADMIN
from protos.v1 import admin_pb2 as pb
from protos.v1 import membership_pb2

ONE = {"peers_min": 1, "quorum": 1.0, "deadline_seconds": 60}


async def test_who_caused_what_in_the_life_of_a_run(stage: Any) -> None:
    await stage.stop()
    await stage.start(store=MemoryStore(), data_dir=stage.folder / "memory")
    peer = await stage.peer("a")
    run_id = await stage.submit(round=ONE, rounds=2)
    offer = await peer.offer()
    peer.report(offer, membership_pb2.ASSIGNMENT_PHASE_TRAINING)
    await stage.call("PauseRun", pb.PauseRunRequest(run_id=run_id))
    await peer.deliver(offer, peer.write(offer, torch.ones(5)))
    await stage.until(run_id, "round.committed")
    await stage.call("StopRun", pb.StopRunRequest(run_id=run_id))
    await stage.ended(run_id)
    await stage.call("DrainPeer", pb.DrainPeerRequest(peer_id="a"))
    events = await stage.store.events()
    actors = {(event.kind, event.round): event.actor for event in events}
    assert actors == actors | {
        ("peer.enrolled", 0): "peer:a",
        ("peer.draining", 0): "admin",
        ("run.submitted", 0): "admin",
        ("run.started", 0): "coordinator",
        ("round.opened", 1): "engine",
        ("assignment.offered", 1): "engine",
        ("assignment.training", 1): "peer:a",
        ("assignment.delivered", 1): "peer:a",
        ("run.paused", 0): "admin",
        ("round.aggregating", 1): "engine",
        ("model.created", 1): "coordinator",
        ("round.committed", 1): "coordinator",
        ("run.cancelled", 0): "admin",
    }
    watch = pb.WatchEventsRequest(run_id=run_id)
    told = [event async for event in _events(stage, watch)]
    assert [event.actor for event in told] == [event.actor for event in events if event.run_id == run_id]


async def _events(stage: Any, request: pb.WatchEventsRequest) -> Any:
    async def one() -> Any:
        yield request

    async for page in stage.channel().stream(ADMIN["WatchEvents"], one(), timeout_seconds=10):
        for event in page.events:
            yield event
