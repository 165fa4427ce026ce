"""Two coordinators on one store: the one that was there first is shut out, and says so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coordinator.server import RunningCoordinator
from coordinator.store import MemoryStore
from muster.config.settings import CoordinatorConfig
from muster.errors import StorageError
from muster.wire import ADMIN, ENROL
from peer.connection.connection import PASSING
from protos.v1 import admin_pb2 as pb
from protos.v1 import membership_pb2


@pytest.mark.parametrize("where", ["memory", "postgresql"])
async def test_the_first_ends_and_names_the_second(
    stage: Any, where: str, request: pytest.FixtureRequest
) -> None:
    await stage.stop()
    settings: dict[str, Any] = {}
    store = None
    if where == "memory":
        store = MemoryStore()
    else:
        settings["database_url"] = request.getfixturevalue("postgres_url")
    await stage.start(store=store, **settings)
    peer = await stage.peer("a")
    first = stage.running.coordinator

    other = {**stage.settings, **settings, "data_dir": stage.folder / "second"}
    second = await RunningCoordinator.start(
        CoordinatorConfig.model_validate(other), stage.transport, store=store
    )
    try:
        enrol = membership_pb2.EnrolRequest(name="b", secret="a secret of b's own", device="cpu")
        with pytest.raises(StorageError) as caught:
            await stage.channel().unary(ENROL, enrol, timeout_seconds=10)
        assert caught.value.id == "store.fenced"
        assert isinstance(caught.value, PASSING)  # a peer comes again, and perhaps finds the second
        ended = await asyncio.wait_for(first.failed, 10)
        assert isinstance(ended, StorageError)
        assert str(stage.folder / "second") in ended.cause
        assert first.members.get("b") is None

        channel = stage.transport.connect(second.address)
        await channel.unary(ENROL, enrol, timeout_seconds=10)
        listed = await channel.unary(ADMIN["ListPeers"], pb.ListPeersRequest(), timeout_seconds=10)
        assert [each.peer_id for each in listed.peers] == ["a", "b"]
        await channel.close()
        await peer.leave()
    finally:
        await second.stop()
