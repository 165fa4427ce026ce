import asyncio
from dataclasses import replace
from typing import Any

import pytest

from coordinator.store import SqlStore, Store, Transfer


@pytest.fixture
async def history(store: Store, script: Any) -> Store:
    """Round 1 is committed, round 2 has one update in, round 3 is planned."""
    await store.commit(
        [script.peer("a", epoch=3), script.peer("b", "SUSPECT"), script.run(), script.model(0)]
    )
    await store.commit(
        [
            script.round(1, "COMMITTED", model_version=1, ended_at=40.0, aggregate_seconds=0.5),
            script.assignment(1, "a", "DELIVERED", digest="u1a", dense_bytes=400, size_bytes=10, norm=2.0,
                              metrics_json='{"loss": 1.5}', weight=0.5, score=3.0, selected=True, treatment="taken"),
            script.assignment(1, "b", "LOST", retry=True, traceback="Traceback", error_id="worker.crashed"),
            script.assignment(1, "b", "DELIVERED", attempt=2, digest="u1b", dense_bytes=400, norm=0.0),
            script.model(1),
            script.evaluation(1, "FINISHED", metrics_json='{"accuracy": 0.5}'),
            script.assignment(1, "b", "DELIVERED", role="evaluate", base_version=1, examples=7),
            script.row("", "run", {"run_id": "r1"}, "RUNNING", model_version=1, last_round=3, committed=1),
            script.row("", "optimizer_state", {"run_id": "r1", "version": 1, "name": "v"}, "", digest="s1v"),
            script.row("", "optimizer_state", {"run_id": "r1", "version": 1, "name": "m"}, "", digest="s1m"),
        ],
        [Transfer(run_id="r1", round=1, peer_id="a", direction="up", bytes=10)],
    )  # fmt: skip
    await store.commit(
        [
            script.round(2),
            script.assignment(2, "a", "DELIVERED", digest="u2a", dense_bytes=400),
            script.assignment(2, "b", "REJECTED", error_id="update.not_finite"),
            script.round(3, "PLANNED"),
            script.evaluation(0),
        ],
        [
            Transfer(run_id="r1", round=2, peer_id="a", direction="up", bytes=20),
            Transfer(run_id="r1", round=2, peer_id="b", direction="down", bytes=5),
        ],
    )
    await store.commit([script.run("r2", "QUEUED", created_at=99.0)])
    return store


async def test_runs_tell_their_totals(history: Store) -> None:
    newer, older = await history.runs()
    assert (newer.run_id, newer.bytes_up, newer.bytes_up_dense, newer.metrics) == ("r2", 0, 0, {})
    assert (newer.model_version, newer.model_digest) == (None, "")
    assert older == await history.run("r1")
    assert (older.bytes_up, older.bytes_down, older.bytes_up_dense) == (30, 5, 1200)
    assert (older.model_version, older.model_digest, older.metrics) == (1, "model1", {"accuracy": 0.5})
    assert (older.name, older.spec_toml, older.committed) == ("digits", "rounds = 3", 1)
    assert await history.run("r3") is None
    assert await history.run_by_request("request of r2") == newer
    assert await history.run_by_request("") is None


async def test_rounds_tell_who_did_what(history: Store) -> None:
    first, second, third = await history.rounds("r1")
    assert [row.number for row in (first, second, third)] == [1, 2, 3]
    assert (first.cohort, first.model_version, first.model_digest) == (("a", "b"), 1, "model1")
    assert (first.bytes_up, second.bytes_up, second.bytes_down, third.bytes_up) == (10, 20, 5, 0)
    assert (first.metrics, second.metrics) == ({"accuracy": 0.5}, {})
    assert (first.aggregate_seconds, second.model_digest, first.assignments) == (0.5, "", ())

    found = await history.round("r1", 1)
    assert found is not None
    assert [(row.work.role, row.peer_id, row.attempt, row.state) for row in found.assignments] == [
        ("train", "a", 1, "DELIVERED"),
        ("train", "b", 1, "LOST"),
        ("train", "b", 2, "DELIVERED"),
        ("evaluate", "b", 1, "DELIVERED"),
    ]
    taken, lost = found.assignments[:2]
    assert (taken.norm, taken.weight, taken.score, taken.selected) == (2.0, 0.5, 3.0, True)
    assert (taken.treatment, taken.metrics, taken.size_bytes) == ("taken", {"loss": 1.5}, 10)
    assert (lost.retry, lost.traceback, lost.error_id, lost.norm) == (
        True,
        "Traceback",
        "worker.crashed",
        None,
    )
    assert await history.round("r1", 4) is None
    assert await history.round("r2", 1) is None


async def test_peers_tell_what_they_delivered(history: Store) -> None:
    first, second = await history.peers()
    assert (first.peer_id, first.epoch, first.updates_delivered, first.updates_rejected) == ("a", 3, 2, 0)
    assert (second.updates_delivered, second.updates_rejected) == (1, 1)  # an evaluation is no update
    assert [(each.updates_failed, each.updates_missed) for each in (first, second)] == [(0, 0), (1, 0)]
    assert (first.bytes_up, first.bytes_down, second.bytes_up, second.bytes_down) == (30, 0, 0, 5)
    assert await history.peer("b") == second
    assert await history.peer("c") is None


async def test_models_are_found_in_every_way(history: Store) -> None:
    initial, newest = await history.models("r1")
    assert (initial.version, initial.metrics, initial.created_at) == (0, {}, 30.0)
    assert (newest.version, newest.metrics, newest.size_bytes) == (1, {"accuracy": 0.5}, 1001)
    assert await history.model("r1") == newest
    assert await history.model("r1", version=0) == initial
    assert await history.model("r1", round=0) == initial
    assert await history.model("r1", round=1) == newest
    assert await history.model("r1", round=2) is None
    assert await history.model("r2") is None
    assert await history.model_by_digest("r1", "model0") == initial
    assert await history.model_by_digest("r2", "model0") is None
    assert list((await history.optimizer_states("r1", 1)).items()) == [("m", "s1m"), ("v", "s1v")]
    assert await history.optimizer_states("r1", 0) == {}


async def test_events_are_read_from_anywhere_in_pages(history: Store) -> None:
    everything = await history.events()
    numbers = [row.sequence for row in everything]
    assert numbers == list(range(1, len(numbers) + 1))
    assert await history.events(after=4, limit=3) == everything[4:7]
    assert await history.events(after=numbers[-1]) == []
    assert [row.kind for row in await history.events(run_id="r2")] == ["run.submitted"]
    of_run = await history.events(after=3, run_id="r1", limit=2)
    assert [row.sequence for row in of_run] == [4, 5]
    assert await history.recent_events(limit=2) == everything[-2:]
    of_peer = await history.recent_events(peer_id="b", limit=2)
    assert [(row.kind, row.round) for row in of_peer] == [
        ("assignment.offered", 1),
        ("assignment.offered", 2),
    ]
    assert [row.run_id for row in await history.recent_events(run_id="r1", limit=1)] == ["r1"]


async def test_a_receipt_names_the_event_that_made_it_durable(store: Store, script: Any) -> None:
    await store.commit([script.peer("a"), script.run(), script.round(1), script.assignment(1, "a")])
    assert await store.delivered_sequence("r1.1.a.1") == 0
    (sequence,) = await store.commit([script.progress(1, "a", "OFFERED", "DELIVERED", digest="u")])
    assert await store.delivered_sequence("r1.1.a.1") == sequence == 5


async def test_a_watcher_wakes_with_the_commit(store: Store, script: Any) -> None:
    assert await store.wait_for_events(after=-1) == 0
    watchers = [asyncio.create_task(store.wait_for_events(after=after)) for after in (0, 0, 1)]
    await asyncio.sleep(0)
    await store.commit([script.peer("a")])
    assert await asyncio.gather(*watchers[:2]) == [1, 1]
    await store.commit([script.row("", "peer", {"peer_id": "a"}, "", seen_at=1.0)])  # tells no event
    assert not watchers[2].done()
    await store.commit([script.peer("b"), script.peer("c")])
    assert await watchers[2] == 3
    assert [row.peer_id for row in await store.events(after=1)] == ["b", "c"]


async def test_the_tail_gives_what_there_is_and_what_comes_and_each_once(history: Store, script: Any) -> None:
    everything = await history.events()
    pages = history.tail(2, limit=4)
    assert await anext(pages) == everything[2:6]
    seen = everything[2:6]
    while seen[-1] != everything[-1]:
        seen += await anext(pages)
    following = asyncio.create_task(anext(pages))
    await asyncio.sleep(0)
    assert not following.done()
    numbers = await history.commit([script.peer("x"), script.peer("y")])
    assert [row.sequence for row in await following] == list(numbers)
    assert seen == everything[2:]
    await pages.aclose()


async def test_the_tail_of_a_run_ends_when_it_is_over(history: Store, script: Any) -> None:
    read: list[str] = []

    async def follow() -> None:
        async for page in history.tail(run_id="r2", over=lambda: "run.finished" in read):
            read.extend(row.kind for row in page)

    reader = asyncio.create_task(follow())
    await history.commit([script.peer("x")])  # of another matter
    await history.commit([script.row("run.finished", "run", {"run_id": "r2"}, "", state="FINISHED")])
    await asyncio.wait_for(reader, 10)
    assert read == ["run.submitted", "run.finished"]


async def test_numbers_go_on_after_a_restart(database_url: str, script: Any) -> None:
    first = await SqlStore.open(database_url)
    await first.commit([script.peer("a"), script.peer("b")])
    await first.close()
    second = await SqlStore.open(database_url)
    try:
        assert await second.wait_for_events(after=1) == 2
        assert await second.commit([script.peer("c")]) == [3]
    finally:
        await second.close()


async def test_reads_go_on_beside_writes(store: Store, script: Any) -> None:
    await store.commit([script.run()])

    async def read() -> int:
        return len(await store.rounds("r1"))

    async def grow() -> None:
        for number in range(1, 21):
            await store.commit([script.round(number, "COMMITTED")])

    growing = asyncio.create_task(grow())
    seen = [0]
    while not growing.done():
        seen += await asyncio.gather(*(read() for _ in range(8)))
    await growing
    assert seen == sorted(seen) or max(seen) <= 20
    assert await read() == 20


async def test_of_a_peers_own_events_the_newest_are_kept_and_those_of_runs_all(
    store: Store, script: Any
) -> None:
    moved = [
        script.row("peer.connected", "peer", {"peer_id": name}, "ACTIVE", epoch=epoch)
        for epoch in range(1, 8)
        for name in ("a", "b")
    ]
    await store.commit([script.peer("a"), script.peer("b"), script.run(), script.model(0), *moved])
    before = await store.events(limit=100)
    await store.prune_peer_events(3)
    after = await store.events(limit=100)
    assert [each for each in before if each.run_id] == [each for each in after if each.run_id]
    assert [each.peer_id for each in after if not each.run_id] == ["a", "b"] * 3
    assert after[-1].sequence == before[-1].sequence


async def test_the_events_of_a_forgotten_name_go_with_it(store: Store, script: Any) -> None:
    gone = replace(script.row("peer.forgotten", "peer", {"peer_id": "b"}, "PENDING"), removes=True)
    await store.commit([script.peer("a"), script.peer("b", "PENDING"), script.run()])
    await store.commit([gone])
    await store.prune_peer_events(3)
    own = [each for each in await store.events(limit=100) if not each.run_id]
    assert [(each.peer_id, each.kind) for each in own] == [("a", "peer.enrolled"), ("b", "peer.forgotten")]
    numbers = await store.commit([script.peer("c")])  # goes on after what was the newest
    assert numbers[0] == own[-1].sequence + 1
    await store.prune_peer_events(3)
    assert {each.peer_id for each in await store.events(limit=100) if not each.run_id} == {"a", "c"}
    assert await store.named_peers() == frozenset()
