"""Sessions, what peers report in them, and membership by command."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from coordinator.membership import detector as membership
from muster.errors import (
    AuthenticationError,
    MusterError,
    NotAllowedError,
)
from muster.transport import MemoryTransport
from muster.transport.limits import Limits
from muster.wire import SESSION
from protos.v1 import admin_pb2 as pb
from protos.v1 import membership_pb2
from protos.v1.membership_pb2 import (
    ASSIGNMENT_PHASE_ACCEPTED,
    ASSIGNMENT_PHASE_FAILED,
    ASSIGNMENT_PHASE_TRAINING,
    AssignmentReport,
    Failure,
    Hello,
    SessionRequest,
)

SIZE = 5
ALL = {"peers_min": 2, "quorum": 1.0, "deadline_seconds": 60}


async def cast(stage: Any, count: int = 2, **tables: Any) -> tuple[str, list[Any], list[Any]]:
    peers = [await stage.peer(f"peer-{i}") for i in range(count)]
    run_id = await stage.submit(**{"round": ALL, **tables})
    return run_id, peers, [await peer.offer() for peer in peers]


async def deliver(peer: Any, offer: Any) -> None:
    await peer.deliver(offer, peer.write(offer, torch.ones(SIZE)))


async def why(stage: Any, run_id: str) -> Any:
    return await stage.call("ExplainRun", pb.ExplainRunRequest(run_id=run_id))


async def test_a_session_starts_with_a_hello(stage: Any) -> None:
    async def requests() -> Any:
        yield membership_pb2.SessionRequest(heartbeat=membership_pb2.Heartbeat(sequence=1))

    with pytest.raises(MusterError) as caught:
        async for _ in stage.channel().stream(SESSION, requests()):
            pass
    assert caught.value.id == "session.no_hello"


async def test_a_newer_session_takes_over_and_the_older_one_is_told(stage: Any) -> None:
    first = await stage.peer("ward")
    second = type(first)(stage.channel(), "ward", stage.folder)
    welcome = await second.connect()
    closing = (await first.hear("closing")).closing
    assert not closing.reconnect
    assert "newer session" in closing.reason
    assert welcome.epoch == 2


async def test_held_work_goes_on_lost_work_is_offered_again_and_old_work_is_cancelled(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    assert [offer.cohort_size for offer in offers] == [2, 2]
    await peers[0].leave()
    again = type(peers[0])(stage.channel(), "peer-0", stage.folder)
    await again.connect(held=["gone.1.peer-0.1"], runs=["gone"])
    offered = await again.offer()
    assert offered.assignment_id == offers[0].assignment_id
    assert offered.seed == offers[0].seed
    assert offered.cohort_size == 2
    assert (await again.hear("cancel")).cancel.assignment_id == "gone.1.peer-0.1"
    assert (await again.hear("run_ended")).run_ended.run_id == "gone"
    await deliver(again, offered)
    await deliver(peers[1], offers[1])
    assert (await stage.ended(run_id)).state == "FINISHED"


async def test_a_peer_that_was_away_for_long_has_much_to_settle_and_does(stage: Any) -> None:
    await stage.peer("ward")
    again = type(await stage.peer("other"))(stage.channel(), "ward", stage.folder)
    runs = [f"run-{number}" for number in range(1000)]
    held = [f"run-{number}.1.ward.1" for number in range(500)]
    await again.connect(held=held, runs=runs)
    cancelled = {(await again.hear("cancel")).cancel.assignment_id for _ in held}
    ended = {(await again.hear("run_ended")).run_ended.run_id for _ in runs}
    assert (cancelled, ended) == (set(held), set(runs))
    again.heartbeat()
    await again.hear("heartbeat_ack")


async def test_a_session_whose_peer_was_given_up_is_ended_so_that_it_comes_back(stage: Any) -> None:
    peer = await stage.peer("ward")
    members = stage.running.coordinator.members
    members._limits = membership.Limits(suspect_seconds=0.0, lost_seconds=0.0)
    await stage.until("", "peer.lost")
    members._limits = membership.Limits(suspect_seconds=600.0, lost_seconds=600.0)
    peer.heartbeat()
    assert (await peer.hear("closing")).closing.reconnect
    again = type(peer)(stage.channel(), "ward", stage.folder)
    await again.connect()
    assert members.get("ward").status == "ACTIVE"


async def test_a_heartbeat_costs_no_more_than_its_own_peer(stage: Any) -> None:
    peer = await stage.peer("ward")
    members = stage.running.coordinator.members
    before, seen_at = members._members, members.seen_at("ward")
    peer.heartbeat()
    await peer.hear("heartbeat_ack")
    assert members._members is before  # nothing that has everybody in it was made anew
    assert members.seen_at("ward") > seen_at
    listed = await stage.call("GetPeer", pb.GetPeerRequest(peer_id="ward"))
    assert listed.peer.seen_at == members.seen_at("ward")


async def test_reports_are_recorded_and_explained(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    peers[0].report(offers[0], ASSIGNMENT_PHASE_ACCEPTED)
    peers[0].report(offers[0], ASSIGNMENT_PHASE_TRAINING)
    await stage.until(run_id, "assignment.training")
    await deliver(peers[1], offers[1])
    told = await why(stage, run_id)
    assert "round 1 has 1 of the 2 updates that its quorum needs and waits for 1 peer" in told.sentence
    assert any(line.startswith("peer-0 is training") for line in told.details)
    await deliver(peers[0], offers[0])
    run = await stage.ended(run_id)
    assert (await why(stage, run_id)).sentence == f"the run is FINISHED: {run.reason}"


async def test_a_heartbeat_is_acknowledged_after_what_came_before_it(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    peers[0].report(offers[0], ASSIGNMENT_PHASE_ACCEPTED)
    peers[0].heartbeat()
    await peers[0].hear("heartbeat_ack")
    row = await stage.assignment(offers[0].assignment_id)
    assert row.state == "ACCEPTED"
    assert run_id == row.run_id


async def test_a_report_for_unknown_work_is_passed_over(stage: Any) -> None:
    _, peers, offers = await cast(stage)
    stranger = membership_pb2.Assignment(assignment_id="nobody.1.peer-0.1")
    peers[0].report(stranger, ASSIGNMENT_PHASE_ACCEPTED)
    peers[0].report(offers[1], ASSIGNMENT_PHASE_ACCEPTED)  # another peer's
    peers[0].heartbeat()
    await peers[0].hear("heartbeat_ack")
    assert (await stage.assignment(offers[1].assignment_id)).state == "OFFERED"


async def test_a_failure_that_may_pass_is_asked_again_and_keeps_its_seed(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    failure = Failure(error_id="worker.crashed", message="killed", traceback="Traceback: x", retry=True)
    peers[0].report(offers[0], ASSIGNMENT_PHASE_FAILED, failure=failure)
    again = await peers[0].offer()
    assert again.assignment_id.endswith(".2")
    assert again.seed == offers[0].seed
    first = await stage.assignment(offers[0].assignment_id)
    assert (first.state, first.error_id, first.traceback) == ("LOST", "worker.crashed", "Traceback: x")
    await deliver(peers[0], again)
    await deliver(peers[1], offers[1])
    assert (await stage.ended(run_id)).state == "FINISHED"


async def test_a_task_that_a_peer_does_not_allow_costs_its_assignment_and_no_more(stage: Any) -> None:
    run_id, peers, offers = await cast(
        stage, round={"peers_min": 2, "quorum": 0.5, "grace_seconds": 30, "deadline_seconds": 60}
    )
    told = "this peer's policy does not allow hand_task:Line"
    failure = Failure(error_id="peer.task_not_allowed", message=told, retry=False)
    peers[0].report(offers[0], ASSIGNMENT_PHASE_FAILED, failure=failure)
    lost = await stage.until(run_id, "assignment.lost")
    assert told in lost.reason
    await deliver(peers[1], offers[1])
    run = await stage.ended(run_id)
    assert run.state == "FINISHED", run.reason
    round_ = (await stage.call("GetRound", pb.GetRoundRequest(run_id=run_id, number=1))).round
    states = {each.peer_id: (each.state, each.attempt) for each in round_.assignments}
    assert states == {"peer-0": ("LOST", 1), "peer-1": ("DELIVERED", 1)}
    assert told in next(each.reason for each in round_.assignments if each.peer_id == "peer-0")


@pytest.mark.parametrize(
    ("said", "error_id"),
    [
        (SessionRequest(hello=Hello()), "session.unexpected"),
        (SessionRequest(report=AssignmentReport(assignment_id="ID", phase=77)), "session.bad_report"),  # type: ignore[arg-type]
        (SessionRequest(), "session.unexpected"),
    ],
)
async def test_nonsense_in_a_session_ends_it_with_its_name_and_the_peer_may_come_back(
    stage: Any, said: SessionRequest, error_id: str
) -> None:
    run_id, peers, offers = await cast(stage)
    if said.HasField("report"):
        said.report.assignment_id = offers[0].assignment_id
    peers[0].outbox.put_nowait(said)
    await asyncio.wait_for(peers[0].reader, 20)
    assert peers[0].error is not None
    assert peers[0].error.id == error_id
    again = type(peers[0])(stage.channel(), "peer-0", stage.folder)
    await again.connect()
    await deliver(again, await again.offer())
    await deliver(peers[1], offers[1])
    assert (await stage.ended(run_id)).state == "FINISHED"


async def test_a_stream_that_says_nothing_is_cut_off(stage: Any) -> None:
    await stage.stop()
    stage.transport = MemoryTransport(limits=Limits(first_seconds=0.05))
    await stage.start()

    async def silent() -> Any:
        await asyncio.Event().wait()
        yield SessionRequest()

    with pytest.raises(MusterError) as caught:
        async for _ in stage.channel().stream(SESSION, silent()):
            pass
    assert caught.value.id == "transport.silent"


async def test_a_wrong_secret_opens_no_session(stage: Any) -> None:
    peer = await stage.peer("ward")
    thief = type(peer)(stage.channel(), "ward", stage.folder, secret="guessed, and long enough")
    with pytest.raises(AssertionError, match="ended before a welcome"):
        await thief.connect()
    assert thief.error.id == "peer.unknown"
    peer.heartbeat()
    await peer.hear("heartbeat_ack")  # the true one's session goes on


async def test_a_silent_peer_is_suspected_then_lost_and_the_round_goes_on(stage: Any) -> None:
    await stage.stop()
    await stage.start(heartbeat_seconds=0.2, suspect_heartbeats=2, lost_heartbeats=5)
    peers = [await stage.peer(f"peer-{i}") for i in range(2)]
    silenced, alive = (asyncio.create_task(keep_alive(peer)) for peer in peers)
    run_id = await stage.submit(round={"peers_min": 2, "quorum": 0.5, "grace_seconds": 0.1})
    offers = [await peer.offer() for peer in peers]
    silenced.cancel()
    await stage.until("", "peer.suspected")
    await stage.until("", "peer.lost")
    assert "peer-0" in (await stage.until(run_id, "assignment.lost")).reason
    await deliver(peers[1], offers[1])
    assert (await stage.ended(run_id)).state == "FINISHED"
    alive.cancel()


async def keep_alive(peer: Any) -> None:
    while True:
        peer.heartbeat()
        await asyncio.sleep(0.02)


async def test_updates_of_a_peer_in_quarantine_are_refused_until_it_is_released(stage: Any) -> None:
    run_id, peers, offers = await cast(
        stage, round={"peers_min": 2, "quorum": 0.5, "grace_seconds": 30, "deadline_seconds": 60}
    )
    await stage.call("QuarantinePeer", pb.QuarantinePeerRequest(peer_id="peer-0", reason="odd norms"))
    with pytest.raises(NotAllowedError) as caught:
        await deliver(peers[0], offers[0])
    assert caught.value.id == "peer.quarantined"
    assert "odd norms" in caught.value.cause
    released = await stage.call("ReleasePeer", pb.ReleasePeerRequest(peer_id="peer-0"))
    assert released.peer.state == "ACTIVE"
    again = await peers[0].offer()
    await deliver(peers[0], again)
    await deliver(peers[1], offers[1])
    assert (await stage.ended(run_id)).state == "FINISHED"


async def test_a_removed_peer_is_sent_away_for_good(stage: Any) -> None:
    peer = await stage.peer("ward")
    removed = await stage.call("RemovePeer", pb.RemovePeerRequest(peer_id="ward", reason="left"))
    assert removed.peer.state == "REVOKED"
    assert not (await peer.hear("closing")).closing.reconnect
    again = type(peer)(stage.channel(), "ward", stage.folder)
    with pytest.raises(NotAllowedError) as caught:
        await again.enrol()
    assert caught.value.id == "peer.removed"
    assert "--data-dir" in caught.value.fix


async def test_a_peer_that_lost_its_folder_takes_its_name_back_once_it_was_removed(stage: Any) -> None:
    peer = await stage.peer("ward")
    secret = "another secret, of another folder"
    reborn = type(peer)(stage.channel(), "ward", stage.folder, secret)
    with pytest.raises(AuthenticationError) as caught:
        await reborn.enrol()
    assert (caught.value.id, "muster peer remove ward" in caught.value.fix) == ("peer.name_taken", True)
    await stage.call("RemovePeer", pb.RemovePeerRequest(peer_id="ward"))
    assert not (await peer.hear("closing")).closing.reconnect
    await reborn.enrol()
    await reborn.connect()
    found = (await stage.call("GetPeer", pb.GetPeerRequest(peer_id="ward"))).peer
    assert (found.state, found.epoch) == ("ACTIVE", 2)
    with pytest.raises(AuthenticationError):
        await type(peer)(stage.channel(), "ward", stage.folder).enrol()


async def test_a_draining_peer_finishes_what_it_holds_and_is_asked_nothing_new(stage: Any) -> None:
    run_id, peers, offers = await cast(
        stage, rounds=2, round={"peers_min": 1, "quorum": 1.0, "deadline_seconds": 60}
    )
    await stage.call("DrainPeer", pb.DrainPeerRequest(peer_id="peer-0"))
    await deliver(peers[0], offers[0])
    await deliver(peers[1], offers[1])
    await deliver(peers[1], await peers[1].offer())
    run = await stage.ended(run_id)
    assert run.state == "FINISHED", run.reason
    second = (await stage.call("GetRound", pb.GetRoundRequest(run_id=run_id, number=2))).round
    assert [a.peer_id for a in second.assignments] == ["peer-1"]
