"""The real store writes what the engine records and gives back the very state that the engine held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coordinator.engine import invariants
from coordinator.engine.state import PauseRequested, ResumeRequested
from coordinator.membership import detector as membership
from coordinator.store import SqlStore


async def test_the_store_gives_back_every_state_of_a_run(make_world: Any, tmp_path: Path) -> None:
    store = await SqlStore.open(f"sqlite:///{tmp_path / 'muster.db'}")
    try:
        world = make_world(
            peers="abcd",
            started=False,
            rounds=2,
            round={"quorum": 0.5, "grace_seconds": 20},
            evaluate={"every": 1, "on": ["coordinator", "peers"]},
        )
        limits = membership.Limits(suspect_seconds=5, lost_seconds=20)
        members = membership.Members()
        for peer_id in "abcd":
            enrolled = membership.Enrolled(
                peer_id=peer_id, secret_hash="h", device="cpu", muster_version="0.1.0"
            )
            for event in (enrolled, membership.Connected(peer_id=peer_id)):
                decision = membership.decide(members, event, world.now, limits)
                members, transitions = decision.members, decision.transitions
                await store.commit(transitions)

        async def keep() -> None:
            await store.commit(world.committed)
            loaded = await store.load_runs()
            assert loaded == ([] if world.state.status.ended else [world.state])

        await keep()
        for step in (
            world.start,
            lambda: world.fail("c", retry=True),
            lambda: world.leave("d"),
            lambda: world.deliver("a", metrics={"loss": 0.5}),
            lambda: world.deliver("b"),
            world.restart,
            lambda: world.tick(20),
            lambda: [world.join(p, tick=False) for p in "abcd"],
            world.aggregated,
            lambda: world.evaluated("a", 1, {"loss": 0.25}, 9),
            lambda: world.send(PauseRequested(run_id="run")),
            lambda: world.tick(60),
            lambda: world.send(ResumeRequested(run_id="run")),
            lambda: world.deliver("a"),
            lambda: world.deliver("b"),
            lambda: world.deliver("c"),
            lambda: world.deliver("d"),
            world.aggregated,
            lambda: world.tick(60),
        ):
            world.committed = []
            step()
            await keep()
        assert world.state.status == "FINISHED"
        events = await store.events(limit=1000)
        assert [event.kind for event in events if event.run_id] == [event.kind for event in world.rows.log]
        assert invariants.check(events) == []
        assert membership.Members.restored(await store.load_peers(), now=1.0).peers.keys() == set("abcd")
    finally:
        await store.close()
