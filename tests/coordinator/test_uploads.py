"""Uploads that meet full disks, each other, the end of their round and the end of the coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.rpc import uploads
from exchange import admission
from muster.errors import StateError, StorageError, UpdateRejected
from muster.wire import BEGIN_UPDATE, GET_UPDATE_STATUS, UPLOAD_UPDATE
from protos.v1 import admin_pb2, updates_pb2
from protos.v1.membership_pb2 import ASSIGNMENT_PHASE_EVALUATED
from protos.v1.tensors_pb2 import Chunk

SIZE = 5
ALL = {"peers_min": 2, "quorum": 1.0, "deadline_seconds": 60}


async def cast(stage: Any, **tables: Any) -> tuple[str, list[Any], list[Any]]:
    """Two peers and a run that has asked both."""
    peers = [await stage.peer(f"peer-{i}") for i in range(2)]
    run_id = await stage.submit(**{"round": ALL, **tables})
    return run_id, peers, [await peer.offer() for peer in peers]


async def deliver(peer: Any, offer: Any) -> None:
    await peer.deliver(offer, peer.write(offer, torch.ones(SIZE)))


class Slow:
    """An upload stream that sends its header, then chunks as the test gives them."""

    def __init__(self, peer: Any, begin: updates_pb2.BeginUpdateRequest) -> None:
        self.peer = peer
        self.begin = begin
        self.chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> int:
        async def out() -> AsyncIterator[updates_pb2.UploadUpdateRequest]:
            yield updates_pb2.UploadUpdateRequest(begin=self.begin)
            while (chunk := await self.chunks.get()) is not None:
                yield updates_pb2.UploadUpdateRequest(chunk=chunk)

        stream = self.peer.channel.stream(UPLOAD_UPDATE, out(), timeout_seconds=20)
        return int([answer async for answer in stream][-1].offset)

    async def ends(self) -> int:
        self.chunks.put_nowait(None)
        return await asyncio.wait_for(self.task, 20)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[None]:
    """Gets an item each time that the coordinator is ready for a chunk."""
    queue: asyncio.Queue[None] = asyncio.Queue()
    next_chunk = uploads._next_chunk  # pyright: ignore[reportPrivateUsage]  # there is no other sign

    async def telling(requests: Any) -> Any:
        queue.put_nowait(None)
        return await next_chunk(requests)

    monkeypatch.setattr(uploads, "_next_chunk", telling)
    return queue


async def begun(peer: Any, offer: Any, asked: asyncio.Queue[None], **header: Any) -> Slow:
    """A stream whose body the coordinator is ready to take."""
    slow = Slow(peer, peer.begin(offer, peer.write(offer, torch.ones(SIZE)), **header))
    await asyncio.wait_for(asked.get(), 20)
    return slow


def configure(stage: Any, **settings: Any) -> None:
    for name, value in settings.items():
        setattr(stage.running.coordinator.quota, name, value)


@pytest.mark.parametrize(
    ("full", "error_id"),
    [
        ({"disk_reserve_bytes": 1 << 60}, "storage.disk_full"),
        ({"spool_bytes_max": 100}, "storage.spool_full"),
    ],
)
async def test_an_update_waits_while_there_is_no_room(
    stage: Any, full: dict[str, int], error_id: str
) -> None:
    run_id, peers, offers = await cast(stage)
    configure(stage, **full)
    with pytest.raises(StorageError) as caught:
        await deliver(peers[0], offers[0])
    assert caught.value.id == error_id
    assert caught.value.cause
    assert caught.value.fix
    assert (
        await stage.assignment(offers[0].assignment_id)
    ).state == "OFFERED"  # it costs time and no assignment
    configure(stage, disk_reserve_bytes=0, spool_bytes_max=1 << 20)
    await deliver(peers[0], offers[0])
    await deliver(peers[1], offers[1])
    assert (await stage.ended(run_id)).state == "FINISHED"


async def test_a_body_under_way_keeps_the_room_that_it_will_need(
    stage: Any, asked: asyncio.Queue[None]
) -> None:
    run_id, peers, offers = await cast(stage)
    configure(stage, spool_bytes_max=1 << 20)
    slow = await begun(peers[0], offers[0], asked, size_bytes=(1 << 20) - 100)
    with pytest.raises(StorageError) as caught:
        await deliver(peers[1], offers[1])
    assert caught.value.id == "storage.spool_full"
    assert await slow.ends() == 0
    await deliver(peers[1], offers[1])
    await deliver(peers[0], offers[0])
    assert (await stage.ended(run_id)).state == "FINISHED"


async def test_a_peer_with_many_streams_takes_one_slot(stage: Any, asked: asyncio.Queue[None]) -> None:
    await stage.stop()
    await stage.start(uploads_max=2)
    run_id, peers, offers = await cast(stage)
    greedy = [await begun(peers[0], offers[0], asked)]
    greedy += [Slow(peers[0], greedy[0].begin) for _ in range(3)]
    await deliver(peers[1], offers[1])
    for slow in greedy:
        await slow.ends()
    await deliver(peers[0], offers[0])
    assert (await stage.ended(run_id)).state == "FINISHED"


async def test_a_sender_whose_round_closes_is_told_before_its_last_byte(
    stage: Any, asked: asyncio.Queue[None]
) -> None:
    quick = {"peers_min": 2, "quorum": 0.5, "grace_seconds": 0, "deadline_seconds": 60}
    run_id, peers, offers = await cast(stage, round=quick)
    slow = await begun(peers[0], offers[0], asked)
    await deliver(peers[1], offers[1])
    assert (await stage.ended(run_id)).state == "FINISHED"
    slow.chunks.put_nowait(stage.chunks_of(peers[0].folder / f"{offers[0].assignment_id}.update")[0])
    with pytest.raises(StateError) as caught:
        await asyncio.wait_for(slow.task, 20)
    assert caught.value.id == "update.stale_round"


async def test_an_upload_goes_on_where_a_coordinator_that_restarted_stands(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    path = peers[0].write(offers[0], torch.ones(SIZE))
    begin = peers[0].begin(offers[0], path)
    chunks = stage.chunks_of(path)
    await peers[0].channel.unary(BEGIN_UPDATE, begin, timeout_seconds=10)
    assert await peers[0].send(begin, chunks[0]) == 64
    await stage.stop()
    await stage.start()
    again = [type(peer)(stage.channel(), peer.name, stage.folder) for peer in peers]
    for peer, offer in zip(again, offers, strict=True):
        await peer.connect(held=[offer.assignment_id])
    status = updates_pb2.GetUpdateStatusRequest(
        credentials=peers[0].credentials, assignment_id=offers[0].assignment_id
    )
    held = await again[0].channel.unary(GET_UPDATE_STATUS, status, timeout_seconds=10)
    assert (held.offset, held.assignment_state) == (64, "UPLOADING")
    assert (await again[0].channel.unary(BEGIN_UPDATE, begin, timeout_seconds=10)).offset == 64
    await again[0].send(begin, *chunks[1:])
    await again[0].commit(begin)
    await deliver(again[1], offers[1])
    assert (await stage.ended(run_id)).state == "FINISHED"


async def test_another_body_cannot_take_the_place_of_one_that_is_being_read(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, peers, offers = await cast(stage)
    peer, offer = peers[0], offers[0]
    path = peer.write(offer, torch.ones(SIZE))
    begin = peer.begin(offer, path)
    await peer.channel.unary(BEGIN_UPDATE, begin, timeout_seconds=10)
    await peer.send(begin, *stage.chunks_of(path))
    other = peer.begin(offer, path, digest="0" * 64)
    loop, admit = asyncio.get_running_loop(), admission.admit
    swaps: list[asyncio.Task[Any]] = []

    async def swap() -> None:
        swaps.append(asyncio.create_task(peer.channel.unary(BEGIN_UPDATE, other, timeout_seconds=10)))
        await asyncio.wait(swaps, timeout=0.2)  # it must not get through before the commit is done

    def admit_slowly(body: Path, digest: str, expected: Any) -> Any:
        asyncio.run_coroutine_threadsafe(swap(), loop).result(10)
        return admit(body, digest, expected)

    monkeypatch.setattr(admission, "admit", admit_slowly)
    assert (await peer.commit(begin)).digest == begin.header.digest
    monkeypatch.setattr(admission, "admit", admit)
    with pytest.raises(UpdateRejected) as caught:
        await swaps[0]
    assert caught.value.id == "update.duplicate"
    await deliver(peers[1], offers[1])
    run = await stage.ended(run_id)
    assert run.state == "FINISHED", run.reason


async def test_who_is_asked_to_evaluate_has_no_update_to_send(stage: Any) -> None:
    run_id, peers, offers = await cast(stage, evaluate={"every": 1, "on": ["peers"]})
    for peer, offer in zip(peers, offers, strict=True):
        await deliver(peer, offer)
    works = [await peer.offer() for peer in peers]
    assert [work.work.role for work in works] == ["evaluate", "evaluate"]
    with pytest.raises(StateError) as caught:
        await deliver(peers[0], works[0])
    assert caught.value.id == "update.not_asked"
    for peer, work in zip(peers, works, strict=True):
        peer.report(work, ASSIGNMENT_PHASE_EVALUATED, metrics={"loss": 2.0}, example_count=3)
    await stage.ended(run_id)
    run = (await stage.call("GetRun", admin_pb2.GetRunRequest(run_id=run_id))).run
    assert (run.state, dict(run.metrics)) == ("FINISHED", {"peers/loss": 2.0})


async def test_an_update_that_comes_too_late_leaves_nothing_on_the_disk(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round closes while the update is being checked."""
    quick = {"peers_min": 2, "quorum": 0.5, "grace_seconds": 0, "deadline_seconds": 60}
    run_id, peers, offers = await cast(stage, rounds=2, round=quick)
    loop, admit = asyncio.get_running_loop(), admission.admit

    async def meanwhile() -> None:
        monkeypatch.setattr(admission, "admit", admit)
        await deliver(peers[1], offers[1])
        await stage.until(run_id, "round.committed")

    def admit_slowly(body: Path, digest: str, expected: Any) -> Any:
        asyncio.run_coroutine_threadsafe(meanwhile(), loop).result(10)
        return admit(body, digest, expected)

    monkeypatch.setattr(admission, "admit", admit_slowly)
    path = peers[0].write(offers[0], torch.ones(SIZE))
    begin = peers[0].begin(offers[0], path)
    with pytest.raises(StateError) as caught:
        await peers[0].deliver(offers[0], path)
    assert caught.value.id == "update.too_late"
    assert "round 1 closes" in caught.value.message
    assert not stage.running.coordinator.blobs.has(begin.header.digest)
