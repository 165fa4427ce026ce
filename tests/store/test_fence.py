"""Of several coordinators on one store, only the one that has claimed it last may write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coordinator.store import Fence, Store
from muster.errors import StorageError


async def test_each_claim_shuts_out_the_ones_before(store: Store, script: Any) -> None:
    first = await store.take_fence("the first", 1.0)
    assert await store.commit([script.peer("a")], fence=first) == [1]
    second = await store.take_fence("the second", 2.0)
    assert second != first
    with pytest.raises(StorageError, match="another coordinator has taken over") as caught:
        await store.commit([script.peer("b")], fence=first)
    assert caught.value.id == "store.fenced"
    assert "the second" in caught.value.cause
    assert "database_url" in caught.value.fix
    assert [peer.peer_id for peer in await store.load_peers()] == ["a"]
    assert len(await store.events()) == 1
    assert await store.commit([script.peer("b")], fence=second) == [2]
    assert await store.commit([script.peer("c")]) == [3]  # a tool without a claim


WRITES: dict[str, Callable[[Store, Fence], Awaitable[Any]]] = {
    "end_unread": lambda store, fence: store.end_unread("r1", "asked for", 1.0, fence=fence),
    "forget_blobs": lambda store, fence: store.forget_blobs(["model0"], fence=fence),
    "remove_run": lambda store, fence: store.remove_run("r1", 1.0, "asked for", fence=fence),
    "prune_peer_events": lambda store, fence: store.prune_peer_events(0, fence=fence),
}


@pytest.mark.parametrize("name", WRITES)
async def test_no_write_gets_past_a_newer_claim(store: Store, script: Any, name: str) -> None:
    old = await store.take_fence("the first", 1.0)
    await store.commit([script.peer("a"), script.run(state="FINISHED"), script.model(0)])
    new = await store.take_fence("the second", 2.0)
    before = await store.events(), await store.runs(), await store.live_blobs()
    with pytest.raises(StorageError) as caught:
        await WRITES[name](store, old)
    assert caught.value.id == "store.fenced"
    assert (await store.events(), await store.runs(), await store.live_blobs()) == before
    await WRITES[name](store, new)
