"""Files that the coordinator's disk has lost or changed: brought back from a peer, or told, never taken for right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from muster.errors import NotFoundError, StateError, StorageError
from muster.wire import ADMIN, FETCH_MODEL, RESTORE_MODEL
from protos.v1.admin_pb2 import PullModelRequest
from protos.v1.membership_pb2 import Assignment
from protos.v1.models_pb2 import FetchModelRequest, RestoreModelBegin, RestoreModelRequest
from protos.v1.tensors_pb2 import BlobHeader

ONE_PEER = {"peers_min": 1, "quorum": 1.0, "grace_seconds": 0, "skips_max": 1}


class Disk:
    """What may happen to the coordinator's file of a digest."""

    def __init__(self, stage: Any) -> None:
        self.blobs = stage.running.coordinator.blobs

    def flip(self, digest: str) -> None:
        path: Path = self.blobs.path(digest)
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 0x40
        path.write_bytes(raw)

    def remove(self, digest: str) -> None:
        self.blobs.path(digest).unlink()

    def cut(self, digest: str) -> None:
        path: Path = self.blobs.path(digest)
        path.write_bytes(path.read_bytes()[:-7])


async def give_back(stage: Any, peer: Any, digest: str, body: bytes) -> None:
    header = BlobHeader(size_bytes=len(body), digest=digest)
    path: Path = stage.folder / "given_back"
    path.write_bytes(body)

    async def out() -> AsyncIterator[RestoreModelRequest]:
        yield RestoreModelRequest(begin=RestoreModelBegin(credentials=peer.credentials, header=header))
        for chunk in stage.chunks_of(path):
            yield RestoreModelRequest(chunk=chunk)

    _ = [each async for each in peer.channel.stream(RESTORE_MODEL, out(), timeout_seconds=10)]


@pytest.fixture
async def offered(stage: Any) -> tuple[Any, Any, Assignment]:
    peer = await stage.peer("peer")
    await stage.submit(rounds=2, round=ONE_PEER, aggregation={"rule": "mean"})
    return stage, peer, await peer.offer()


@pytest.mark.parametrize("harm", ["flip", "remove", "cut"])
async def test_a_base_version_that_is_lost_comes_back_from_a_peer_that_holds_it(
    offered: Any, harm: str
) -> None:
    stage, peer, offer = offered
    right = stage.running.coordinator.blobs.path(offer.work.base.digest).read_bytes()
    getattr(Disk(stage), harm)(offer.work.base.digest)
    delivery = asyncio.create_task(peer.deliver(offer, peer.write(offer, torch.zeros(5))))
    wanted = (await peer.hear("restore")).restore
    assert (wanted.digest, wanted.size_bytes) == (offer.work.base.digest, len(right))
    await give_back(stage, peer, offer.work.base.digest, right)
    await delivery
    following = await peer.offer()
    assert (
        following.work.base.digest == offer.work.base.digest
    )  # a step of zero: the same bytes, so nothing was taken over
    assert stage.running.coordinator.blobs.path(offer.work.base.digest).read_bytes() == right


async def test_bytes_that_are_not_the_version_are_refused_and_the_round_says_what_is_lost(
    offered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.repairs.ANSWER_SECONDS_MAX", 5.0)
    stage, peer, offer = offered
    right = stage.running.coordinator.blobs.path(offer.work.base.digest).read_bytes()
    with pytest.raises(StateError, match="asked for"):
        await give_back(stage, peer, offer.work.base.digest, right)  # nobody has asked
    Disk(stage).flip(offer.work.base.digest)
    await peer.deliver(offer, peer.write(offer, torch.zeros(5)))
    await peer.hear("restore")
    with pytest.raises(Exception, match="digest"):
        await give_back(stage, peer, offer.work.base.digest, bytes(len(right)))
    skipped = await stage.until(offer.run_id, "round.skipped")
    assert "other bytes than were stored" in skipped.reason
    assert "backup" in skipped.reason
    with pytest.raises(StorageError, match="no connected peer holds it"):
        await (
            stage.channel()
            .stream(ADMIN["PullModel"], only(PullModelRequest(run_id=offer.run_id)))
            .__anext__()
        )


async def test_no_more_of_a_version_is_served_than_is_asked_for(offered: Any) -> None:
    _, peer, offer = offered
    request = FetchModelRequest(
        run_id=offer.run_id, digest=offer.work.base.digest, offset=10, stop=10, credentials=peer.credentials
    )
    parts = [part async for part in peer.channel.stream(FETCH_MODEL, only(request), timeout_seconds=10)]
    assert [part.WhichOneof("part") for part in parts] == ["header"]
    request.stop = 11
    parts = [part async for part in peer.channel.stream(FETCH_MODEL, only(request), timeout_seconds=10)]
    assert [part.WhichOneof("part") for part in parts] == ["header", "chunk"]


async def test_a_lost_version_is_not_served_and_a_kept_copy_is_left_for_people(
    offered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.repairs.ANSWER_SECONDS_MAX", 0.2)
    stage, peer, offer = offered
    Disk(stage).flip(offer.work.base.digest)
    request = FetchModelRequest(
        run_id=offer.run_id, digest=offer.work.base.digest, credentials=peer.credentials
    )
    with pytest.raises(NotFoundError) as caught:
        await peer.channel.stream(FETCH_MODEL, only(request), timeout_seconds=10).__anext__()
    assert caught.value.id == "model.lost"
    warned = await stage.until(offer.run_id, "run.warned")
    assert f"lost its file of the version {offer.work.base.digest[:12]}" in warned.reason
    assert list((stage.folder / "coordinator" / "blobs" / "damaged").iterdir())


@pytest.mark.parametrize("harm", ["flip", "remove"])
async def test_an_update_that_is_lost_costs_its_round_and_not_the_process(offered: Any, harm: str) -> None:
    stage, first, offer = offered
    coordinator = stage.running.coordinator
    adopt = coordinator.blobs.adopt

    async def adopt_and_lose(path: Path, digest: str) -> Path:
        found = await adopt(path, digest)
        getattr(Disk(stage), harm)(digest)
        return Path(found)

    coordinator.blobs.adopt = adopt_and_lose
    await first.deliver(offer, first.write(offer, torch.zeros(5)))
    skipped = await stage.until(offer.run_id, "round.skipped")
    assert "lost a file that it needs" in skipped.reason


async def test_a_disk_that_refuses_is_told_and_not_waited_for_without_end(
    offered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.effects.aggregation.STORAGE_RETRY_SECONDS", 0.02)
    stage, peer, offer = offered
    coordinator = stage.running.coordinator

    def full(job: Any) -> Any:
        raise StorageError("storage.disk_full", "no space left for /data")

    monkeypatch.setattr("exchange.aggregation.aggregate", full)
    await peer.deliver(offer, peer.write(offer, torch.zeros(5)))
    while not coordinator.aggregation.obstacle(offer.run_id):  # noqa: ASYNC110  # it tells nobody else
        await asyncio.sleep(0.01)
    assert "waits for storage: [storage.disk_full]" in coordinator.aggregation.obstacle(offer.run_id)
    monkeypatch.setattr("coordinator.effects.aggregation.STORAGE_SECONDS_MAX", 0.0)
    skipped = await stage.until(offer.run_id, "round.skipped")
    assert "no space left" in skipped.reason
    assert not coordinator.aggregation.obstacle(offer.run_id)


async def only(request: Any) -> AsyncIterator[Any]:
    yield request


async def test_a_peer_that_drips_holds_up_nobody_who_holds_the_version(stage: Any) -> None:
    liar, honest = await stage.peer("liar"), await stage.peer("honest")
    spec = {**ONE_PEER, "peers_min": 2}
    await stage.submit(rounds=2, round=spec, aggregation={"rule": "mean"})
    first, offer = await liar.offer(), await honest.offer()
    right = stage.running.coordinator.blobs.path(offer.work.base.digest).read_bytes()
    await liar.deliver(first, liar.write(first, torch.zeros(5)))
    Disk(stage).flip(offer.work.base.digest)
    delivery = asyncio.create_task(honest.deliver(offer, honest.write(offer, torch.zeros(5))))
    wanted = (await liar.hear("restore")).restore

    async def begun() -> AsyncIterator[RestoreModelRequest]:
        header = BlobHeader(size_bytes=wanted.size_bytes, digest=wanted.digest)
        yield RestoreModelRequest(begin=RestoreModelBegin(credentials=liar.credentials, header=header))
        await asyncio.Event().wait()

    async def drip() -> None:
        _ = [each async for each in liar.channel.stream(RESTORE_MODEL, begun(), timeout_seconds=30)]

    dripping = asyncio.create_task(drip())
    await honest.hear("restore")
    while not stage.running.coordinator.repairs._wanted[wanted.digest].senders:  # noqa: ASYNC110  # it tells nobody else
        await asyncio.sleep(0.01)
    await give_back(stage, honest, offer.work.base.digest, right)
    await delivery
    assert (await honest.offer()).work.base.digest == offer.work.base.digest
    dripping.cancel()
    await asyncio.wait({dripping})
