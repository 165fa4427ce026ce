"""What a peer may send that it should not: each costs one assignment at most, has a name, and the run goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exchange.payload import GroupSpec
from muster.errors import (
    AuthenticationError,
    MusterError,
    NotAllowedError,
    OffsetError,
    StateError,
    TransferError,
    UpdateRejected,
    VersionError,
)
from muster.files.digests import checksum
from muster.transport import GrpcTransport, MemoryTransport
from muster.wire import BEGIN_UPDATE, ENROL, GET_UPDATE_STATUS, PROTOCOL_VERSION
from protos.v1 import admin_pb2, membership_pb2, updates_pb2
from protos.v1.tensors_pb2 import Chunk

SIZE = 5  # coordinates of the task's model: a weight [1, 4] and a bias [1]
Misdeed = Callable[[Any, Any], Awaitable[None]]


async def cast(stage: Any, **tables: Any) -> tuple[str, list[Any], list[Any]]:
    """Three peers and a run that has asked each of them."""
    peers = [await stage.peer(f"peer-{i}") for i in range(3)]
    run_id = await stage.submit(**tables)
    return run_id, peers, [await peer.offer() for peer in peers]


async def goes_on(stage: Any, run_id: str, peers: list[Any], offers: list[Any]) -> Any:
    """The other two deliver and the round commits with exactly theirs."""
    for peer, offer in zip(peers[1:], offers[1:], strict=True):
        await peer.deliver(offer, peer.write(offer, torch.ones(SIZE)))
    run = await stage.ended(run_id)
    assert (run.state, run.rounds_committed) == ("FINISHED", 1), run.reason
    round_ = (await stage.call("GetRound", admin_pb2.GetRoundRequest(run_id=run_id, number=1))).round
    assert sorted(a.peer_id for a in round_.assignments if a.weight > 0) == ["peer-1", "peer-2"]
    return round_


async def sends_nan(peer: Any, offer: Any) -> None:
    vector = torch.zeros(SIZE)
    vector[4] = float("nan")
    await peer.deliver(offer, peer.write(offer, vector))


async def sends_another_shape(peer: Any, offer: Any) -> None:
    await peer.deliver(offer, peer.write(offer, torch.zeros(SIZE + 1)))


async def sends_another_dtype(peer: Any, offer: Any) -> None:
    """A layout in which a tensor is BF16: its digest differs."""
    await peer.deliver(offer, peer.write(offer, torch.zeros(SIZE)), layout_digest="0" * 64)


async def hides_another_dtype(peer: Any, offer: Any) -> None:
    """The same behind an honest header."""
    await peer.deliver(offer, peer.write(offer, torch.zeros(SIZE), layout_digest="0" * 64))


async def lacks_a_tensor(peer: Any, offer: Any) -> None:
    lying = (GroupSpec(name="params", codec="identity", size=SIZE),)
    await peer.deliver(offer, peer.write(offer, torch.zeros(4), groups=lying))


async def adds_a_tensor(peer: Any, offer: Any) -> None:
    groups = (
        GroupSpec(name="params", codec="identity", size=SIZE),
        GroupSpec(name="more", codec="identity", size=0),
    )
    await peer.deliver(offer, peer.write(offer, torch.zeros(SIZE), groups=groups))


async def sends_too_much(peer: Any, offer: Any) -> None:
    path = peer.write(offer, torch.zeros(SIZE))
    await peer.deliver(offer, path, size_bytes=1 << 40)


async def sends_rubbish(peer: Any, offer: Any) -> None:
    path: Path = peer.folder / "rubbish"
    path.write_bytes(b"\x80\x04." * 400)
    await peer.deliver(offer, path)


async def answers_for_another_round(peer: Any, offer: Any) -> None:
    await peer.deliver(offer, peer.write(offer, torch.zeros(SIZE), round=offer.round + 1))


async def trained_from_another_base(peer: Any, offer: Any) -> None:
    await peer.deliver(offer, peer.write(offer, torch.zeros(SIZE), base_digest="0" * 64))


async def claims_no_examples(peer: Any, offer: Any) -> None:
    await peer.deliver(offer, peer.write(offer, torch.zeros(SIZE), scalars={"examples": -3.0}))


@pytest.mark.parametrize(
    ("misdeed", "error_id"),
    [
        (sends_nan, "update.not_finite"),
        (sends_another_shape, "update.mismatch"),
        (sends_another_dtype, "update.wrong_layout"),
        (hides_another_dtype, "update.mismatch"),
        (lacks_a_tensor, "update.undecodable"),
        (adds_a_tensor, "update.mismatch"),
        (sends_too_much, "update.oversize"),
        (sends_rubbish, "update.malformed"),
        (answers_for_another_round, "update.mismatch"),
        (trained_from_another_base, "update.mismatch"),
        (claims_no_examples, "update.bad_examples"),
    ],
)
async def test_a_bad_update_is_rejected_by_name_and_the_round_commits_without_it(
    stage: Any, misdeed: Misdeed, error_id: str
) -> None:
    run_id, peers, offers = await cast(stage)
    with pytest.raises(UpdateRejected) as caught:
        await misdeed(peers[0], offers[0])
    assert caught.value.id == error_id
    assert caught.value.message
    assert caught.value.cause or caught.value.fix
    round_ = await goes_on(stage, run_id, peers, offers)
    (bad,) = [a for a in round_.assignments if a.peer_id == "peer-0"]
    assert bad.state == "REJECTED"
    assert error_id in bad.reason
    rejected = await stage.until(run_id, "assignment.rejected")
    assert error_id in rejected.reason
    assert list((stage.folder / "coordinator" / "spool").iterdir()) == []


async def test_a_flipped_bit_is_refused_at_its_chunk_and_the_upload_resumes(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    peer, offer = peers[0], offers[0]
    path = peer.write(offer, torch.ones(SIZE))
    begin = peer.begin(offer, path)
    body = path.read_bytes()
    good = Chunk(offset=0, data=body[:64], crc32c=checksum(body[:64]))
    flipped = bytes([body[64] ^ 1]) + body[65:]
    bad = Chunk(offset=64, data=flipped, crc32c=checksum(body[64:]))
    with pytest.raises(TransferError) as caught:
        await peer.send(begin, good, bad)
    assert caught.value.id == "transfer.checksum"
    answer = await peer.channel.unary(BEGIN_UPDATE, begin, timeout_seconds=10)
    rest = Chunk(offset=answer.offset, data=body[answer.offset :], crc32c=checksum(body[answer.offset :]))
    assert await peer.send(begin, rest) == len(body)
    assert (await peer.commit(begin)).digest == begin.header.digest
    for other, work in zip(peers[1:], offers[1:], strict=True):
        await other.deliver(work, other.write(work, torch.ones(SIZE)))
    assert (await stage.ended(run_id)).state == "FINISHED"


async def test_a_flipped_bit_under_a_right_checksum_fails_the_digest(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    peer, offer = peers[0], offers[0]
    path = peer.write(offer, torch.ones(SIZE))
    begin = peer.begin(offer, path)
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    await peer.send(begin, Chunk(offset=0, data=bytes(body), crc32c=checksum(bytes(body))))
    with pytest.raises(TransferError) as caught:
        await peer.commit(begin)
    assert caught.value.id == "transfer.digest"
    await peer.deliver(offer, path)  # the right bytes are still welcome
    await goes_on_with_all(stage, run_id, peers, offers)


async def goes_on_with_all(stage: Any, run_id: str, peers: list[Any], offers: list[Any]) -> None:
    for peer, offer in zip(peers[1:], offers[1:], strict=True):
        await peer.deliver(offer, peer.write(offer, torch.ones(SIZE)))
    run = await stage.ended(run_id)
    assert run.state == "FINISHED", run.reason
    round_ = (await stage.call("GetRound", admin_pb2.GetRoundRequest(run_id=run_id, number=1))).round
    assert [a.state for a in round_.assignments] == ["DELIVERED"] * 3


async def test_a_truncated_body_is_never_complete(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    peer, offer = peers[0], offers[0]
    path = peer.write(offer, torch.ones(SIZE))
    begin = peer.begin(offer, path)
    first = Chunk(offset=0, data=path.read_bytes()[:64], crc32c=checksum(path.read_bytes()[:64]))
    assert await peer.send(begin, first) == 64  # the stream ends well, and means nothing
    with pytest.raises(TransferError) as caught:
        await peer.commit(begin)
    assert caught.value.id == "transfer.truncated"
    with pytest.raises(OffsetError):
        await peer.send(begin, first)  # again from the start, though 64 bytes are held
    await peer.send(begin, *chunks_from(path, 64))
    await peer.commit(begin)
    await goes_on_with_all(stage, run_id, peers, offers)


def chunks_from(path: Path, offset: int) -> list[Chunk]:
    rest = path.read_bytes()[offset:]
    return [Chunk(offset=offset, data=rest, crc32c=checksum(rest))]


async def test_more_bytes_than_announced_are_cut_off(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    peer, offer = peers[0], offers[0]
    path = peer.write(offer, torch.ones(SIZE))
    begin = peer.begin(offer, path, size_bytes=64)
    with pytest.raises(TransferError) as caught:
        await peer.send(begin, *chunks_from(path, 0))
    assert caught.value.id == "transfer.oversize"
    await peer.deliver(offer, path)  # announced as it is, it is welcome
    await goes_on_with_all(stage, run_id, peers, offers)


async def test_a_commit_ten_times_over_is_one_update_with_one_receipt(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    peer, offer = peers[0], offers[0]
    path = peer.write(offer, torch.ones(SIZE))
    begin = peer.begin(offer, path)
    first = await peer.deliver(offer, path)
    again = await asyncio.gather(*(peer.commit(begin) for _ in range(10)))
    assert all(receipt == first for receipt in again)
    assert first.event_sequence == (await stage.until(run_id, "assignment.delivered")).sequence
    other = peer.write(offer, torch.zeros(SIZE))
    with pytest.raises(UpdateRejected) as caught:
        await peer.deliver(offer, other)
    assert caught.value.id == "update.duplicate"
    await goes_on_with_all(stage, run_id, peers, offers)


async def test_an_update_for_a_round_that_is_over_is_refused(stage: Any) -> None:
    run_id, peers, offers = await cast(
        stage, rounds=2, round={"peers_min": 3, "quorum": 0.6, "grace_seconds": 0, "deadline_seconds": 60}
    )
    for peer, offer in zip(peers[1:], offers[1:], strict=True):
        await peer.deliver(offer, peer.write(offer, torch.ones(SIZE)))
    await stage.until(run_id, "round.committed")
    with pytest.raises(StateError) as caught:
        await peers[0].deliver(offers[0], peers[0].write(offers[0], torch.ones(SIZE)))
    assert caught.value.id == "update.stale_round"
    cancelled = (await peers[0].hear("cancel")).cancel
    assert cancelled.assignment_id == offers[0].assignment_id


async def test_nobody_answers_for_somebody_else(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    with pytest.raises(NotAllowedError) as caught:
        await peers[0].deliver(offers[1], peers[0].write(offers[1], torch.zeros(SIZE)))
    assert caught.value.id == "assignment.not_yours"
    thief = updates_pb2.GetUpdateStatusRequest(
        credentials=membership_pb2.Credentials(peer_id="peer-1", secret="guessed, and long enough"),
        assignment_id=offers[1].assignment_id,
    )
    with pytest.raises(AuthenticationError):
        await peers[0].channel.unary(GET_UPDATE_STATUS, thief, timeout_seconds=10)
    await peers[0].deliver(offers[0], peers[0].write(offers[0], torch.ones(SIZE)))
    await goes_on_with_all(stage, run_id, peers, offers)


async def test_a_name_belongs_to_whoever_took_it_first(stage: Any) -> None:
    peer = await stage.peer("ward")
    request = membership_pb2.EnrolRequest(name="ward", secret="another secret, long enough")
    with pytest.raises(AuthenticationError) as caught:
        await peer.channel.unary(ENROL, request, timeout_seconds=10)
    assert caught.value.id == "peer.name_taken"
    assert "another name" in caught.value.fix


@pytest.mark.parametrize("name", ["", "../etc", "a b", "x" * 65, ".hidden", "ward\n"])
async def test_a_name_that_is_none(stage: Any, name: str) -> None:
    request = membership_pb2.EnrolRequest(name=name, secret="a secret that is long enough")
    with pytest.raises(MusterError) as caught:
        await stage.channel().unary(ENROL, request, timeout_seconds=10)
    assert caught.value.id == "peer.bad_name"


async def test_a_peer_of_another_protocol_is_refused_at_once(stage: Any) -> None:
    other = MemoryTransport(stage.transport.hub, protocol=PROTOCOL_VERSION + 1)
    request = membership_pb2.EnrolRequest(name="new", secret="a secret that is long enough")
    with pytest.raises(VersionError) as caught:
        await stage.channel(other).unary(ENROL, request, timeout_seconds=10)
    assert caught.value.id == "transport.protocol_mismatch"
    assert caught.value.fix


async def test_over_grpc_a_bad_update_and_another_protocol_are_told_the_same(stage: Any) -> None:
    await stage.stop()
    stage.transport = GrpcTransport()
    await stage.start()
    request = membership_pb2.EnrolRequest(name="new", secret="a secret that is long enough")
    with pytest.raises(VersionError) as refused:
        await stage.channel(GrpcTransport(protocol=PROTOCOL_VERSION + 1)).unary(
            ENROL, request, timeout_seconds=10
        )
    assert refused.value.id == "transport.protocol_mismatch"
    run_id, peers, offers = await cast(stage)
    with pytest.raises(UpdateRejected) as caught:
        await sends_nan(peers[0], offers[0])
    assert caught.value.id == "update.not_finite"
    assert "bias" in caught.value.message
    assert caught.value.cause
    assert caught.value.fix
    await goes_on(stage, run_id, peers, offers)
