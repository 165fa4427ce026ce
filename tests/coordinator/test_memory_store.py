"""A coordinator whose store and blobs are in memory."""

from __future__ import annotations

from typing import Any

import torch

from coordinator.store import MemoryStore
from muster.files.blobs import MemoryBlobStore


async def test_a_run_goes_on_after_a_restart_and_leaves_nothing_on_the_disk(stage: Any) -> None:
    await stage.stop()
    store, blobs = MemoryStore(), MemoryBlobStore()
    settings = {"data_dir": stage.folder / "memory"}
    await stage.start(store=store, blobs=blobs, **settings)
    names = ("a", "b", "c")
    peers = {name: await stage.peer(name) for name in names}
    run_id = await stage.submit()
    offers = {name: await peers[name].offer() for name in names}
    first = offers["a"]
    await peers["a"].deliver(first, peers["a"].write(first, torch.ones(5)))

    await stage.stop()
    await stage.start(store=store, blobs=blobs, **settings)
    for name in names[1:]:
        peer = await stage.peer(name)
        offer = await peer.offer()
        await peer.deliver(offer, peer.write(offer, torch.ones(5)))
    run = await stage.ended(run_id)

    assert run.state == "FINISHED"
    kept = sorted(path.name for path in settings["data_dir"].rglob("*") if path.is_file())
    assert kept == ["coordinator.lock"]
    blobs.close()
