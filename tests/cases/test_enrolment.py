"""Names cannot be had without end, and who has one is never refused for others' sake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.membership.enrolment import ADDRESSES_MAX, EnrolmentGate, Rate
from coordinator.server import RunningCoordinator
from muster.config.settings import CoordinatorConfig
from muster.errors import MusterError, NotAllowedError, StorageError, UnreachableError
from muster.transport import Channel, MemoryTransport
from muster.wire import ADMIN, ENROL
from peer.connection.connection import PASSING
from protos.v1.admin_pb2 import RemovePeerRequest, WatchEventsRequest
from protos.v1.membership_pb2 import EnrolRequest


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[Channel]:
    transport = MemoryTransport()
    config = CoordinatorConfig.model_validate({"address": "c:1", "data_dir": tmp_path / "c", "peers_max": 3})
    running = await RunningCoordinator.start(config, transport)
    channel = transport.connect("c:1")
    yield channel
    await channel.close()
    await running.stop()


async def enrol(channel: Channel, name: str, secret: str = "s" * 32, instance: str = "") -> None:
    request = EnrolRequest(name=name, secret=secret, instance=instance)
    await channel.unary(ENROL, request, timeout_seconds=10)


async def test_no_more_names_than_the_admin_has_set(channel: Channel) -> None:
    for name in ("a", "b", "c"):
        await enrol(channel, name)
    with pytest.raises(StorageError) as caught:
        await enrol(channel, "d")
    assert caught.value.id == "peer.too_many"
    assert "coordinator.peers_max is 3" in caught.value.cause
    await enrol(channel, "a")


async def test_a_removed_peer_makes_room(channel: Channel) -> None:
    for name in ("a", "b", "c"):
        await enrol(channel, name)
    with pytest.raises(StorageError) as caught:
        await enrol(channel, "d")
    assert "muster peer remove NAME" in caught.value.fix
    await channel.unary(ADMIN["RemovePeer"], RemovePeerRequest(peer_id="b"), timeout_seconds=10)
    await enrol(channel, "d")
    with pytest.raises(StorageError):  # the freed name is one like any other
        await enrol(channel, "b", secret="t" * 32)
    with pytest.raises(NotAllowedError):
        await enrol(channel, "b")


async def test_one_peer_cannot_start_anew_without_end(channel: Channel) -> None:
    await enrol(channel, "a")
    taken = 0
    with pytest.raises(UnreachableError) as caught:
        for taken in range(100):
            await enrol(channel, "a", instance=str(taken))
    assert caught.value.id == "peer.enrolled_too_fast"
    assert isinstance(caught.value, PASSING)
    assert taken == 20
    await enrol(channel, "a", instance=str(taken - 1))  # as before
    await enrol(channel, "b", instance="1")
    events = [
        event
        async for answer in channel.stream(ADMIN["WatchEvents"], only(WatchEventsRequest()))
        for event in answer.events
        if event.peer_id == "a"
    ]
    assert len(events) == 21


async def only(request: WatchEventsRequest) -> AsyncIterator[WatchEventsRequest]:
    yield request


def test_starts_are_taken_again_after_a_while() -> None:
    gate = EnrolmentGate(peers_max=10, each_name=Rate(burst=2, per_second=0.1))
    for _ in range(2):
        gate.check_again("a", 100.0)
    with pytest.raises(UnreachableError, match="starts anew too often"):
        gate.check_again("a", 105.0)
    gate.check_again("b", 105.0)
    gate.check_again("a", 110.0)


def refused(gate: EnrolmentGate, address: str, now: float) -> MusterError | None:
    try:
        gate.check(address, 0, now)
    except MusterError as error:
        assert isinstance(error, PASSING)  # a peer tries again by itself
        return error
    return None


def test_one_address_is_slowed_down_and_others_are_not() -> None:
    gate = EnrolmentGate(
        peers_max=10**6, overall=Rate(burst=100, per_second=10), each_address=Rate(burst=5, per_second=1)
    )
    assert [refused(gate, f"10.0.0.1:{port}", 0.0) is None for port in range(7)] == [True] * 5 + [False] * 2
    error = refused(gate, "10.0.0.1:1", 0.0)
    assert isinstance(error, UnreachableError)
    assert error.id == "peer.enrolled_too_fast"
    assert "1 a second" in error.cause
    assert refused(gate, "10.0.0.2:1", 0.0) is None
    assert refused(gate, "10.0.0.1:1", 1.0) is None
    assert refused(gate, "10.0.0.1:1", 1.5)


def test_all_together_are_slowed_down_too() -> None:
    gate = EnrolmentGate(peers_max=10**6, overall=Rate(burst=10, per_second=2))
    taken = [address for address in range(100) if refused(gate, f"10.0.0.{address}:1", 0.0) is None]
    assert len(taken) == 10
    taken = [address for address in range(100) if refused(gate, f"10.0.0.{address}:1", 2.0) is None]
    assert len(taken) == 4


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    gate = EnrolmentGate(peers_max=10**6, overall=Rate(burst=10**6, per_second=1))
    for address in range(ADDRESSES_MAX + 100):
        refused(gate, f"{address}:1", 0.0)
    assert len(gate._addresses) == ADDRESSES_MAX
