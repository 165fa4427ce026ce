"""Sessions, membership by command, and runs as an admin steers them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from muster.errors import (
    ConfigError,
    MusterError,
    NotAllowedError,
    NotFoundError,
    StateError,
    StorageError,
)
from muster.wire import BEGIN_UPDATE, METHODS, SESSION
from protos.v1 import admin_pb2 as pb
from protos.v1 import membership_pb2
from protos.v1.membership_pb2 import (
    ASSIGNMENT_PHASE_ACCEPTED,
    ASSIGNMENT_PHASE_FAILED,
    ASSIGNMENT_PHASE_TRAINING,
    Failure,
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
    await peers[0].leave()
    again = type(peers[0])(stage.channel(), "peer-0", stage.folder)
    await again.connect(held=["gone.1.peer-0.1"], runs=["gone"])
    offered = await again.offer()
    assert offered.assignment_id == offers[0].assignment_id
    assert offered.seed == offers[0].seed
    assert (await again.hear("cancel")).cancel.assignment_id == "gone.1.peer-0.1"
    assert (await again.hear("run_ended")).run_ended.run_id == "gone"
    await deliver(again, offered)
    await deliver(peers[1], offers[1])
    assert (await stage.ended(run_id)).state == "FINISHED"


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


async def test_a_silent_peer_is_suspected_then_lost_and_the_round_goes_on(stage: Any) -> None:
    await stage.stop()
    await stage.start(heartbeat_seconds=0.2, suspect_heartbeats=2, lost_heartbeats=5)
    peers = [await stage.peer(f"peer-{i}") for i in range(2)]
    alive = asyncio.create_task(keep_alive(peers[1]))
    run_id = await stage.submit(round={"peers_min": 2, "quorum": 0.5, "grace_seconds": 0.1})
    offers = [await peer.offer() for peer in peers]
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


# -- runs ----------------------------------------------------------------------------------------------------


async def test_the_same_request_submits_once(stage: Any) -> None:
    run_id = await stage.submit()
    row = await stage.store.run(run_id)
    request = pb.SubmitRunRequest(spec_json=row.spec_json, request_id="abc")
    runs = await asyncio.gather(*(stage.call("SubmitRun", request) for _ in range(3)))
    assert len({answer.run.run_id for answer in runs}) == 1


async def test_what_a_spec_names_must_be_installed(stage: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        await stage.submit(aggregation={"rule": "kurm", "faults": 1})
    assert "krum" in str(caught.value)
    with pytest.raises(ConfigError):
        await stage.call("SubmitRun", pb.SubmitRunRequest(spec_json="{not json"))
    assert (await stage.call("ListRuns", pb.ListRunsRequest())).runs == []


async def test_a_broken_task_fails_its_run_with_the_tasks_own_words(stage: Any) -> None:
    run = await stage.ended(await stage.submit(task="hand_task:Broken"))
    assert run.state == "FAILED"
    assert "no such layer" in run.reason


async def test_below_the_rules_bound_rounds_are_skipped_and_the_run_fails_with_the_bound(stage: Any) -> None:
    run_id, peers, offers = await cast(
        stage,
        count=3,
        round={"peers_min": 3, "quorum": 0.6, "deadline_seconds": 60, "grace_seconds": 0, "skips_max": 1},
        aggregation={"rule": "trimmed-mean", "faults": 1},
    )
    nan = torch.full((SIZE,), float("nan"))
    with pytest.raises(MusterError):
        await peers[0].deliver(offers[0], peers[0].write(offers[0], nan))
    run = await stage.ended(run_id)
    assert run.state == "FAILED"
    skipped = await stage.until(run_id, "round.skipped")
    assert "3" in skipped.reason
    assert "updates" in skipped.reason


async def test_pause_lets_the_round_end_resume_opens_the_next_and_stop_cancels(stage: Any) -> None:
    run_id, peers, offers = await cast(stage, rounds=3)
    await stage.call("PauseRun", pb.PauseRunRequest(run_id=run_id))
    for peer, offer in zip(peers, offers, strict=True):
        await deliver(peer, offer)
    await stage.until(run_id, "round.committed")
    assert (await stage.call("GetRun", pb.GetRunRequest(run_id=run_id))).run.state == "PAUSED"
    await stage.call("ResumeRun", pb.ResumeRunRequest(run_id=run_id))
    second = await peers[0].offer()
    stopped = (await stage.call("StopRun", pb.StopRunRequest(run_id=run_id, reason="enough"))).run
    assert stopped.state == "CANCELLED"
    assert "enough" in stopped.reason
    assert (await peers[0].hear("cancel")).cancel.assignment_id == second.assignment_id
    assert (await peers[0].hear("run_ended")).run_ended.run_id == run_id
    with pytest.raises(StateError):
        await stage.call("ResumeRun", pb.ResumeRunRequest(run_id=run_id))


async def test_two_runs_at_once_each_get_their_updates(stage: Any) -> None:
    first, peers, offers = await cast(stage, name="one")
    second = await stage.submit(name="two", round=ALL)
    more = [await peer.offer() for peer in peers]
    assert {offer.run_id for offer in more} == {second}
    for peer, work in zip(peers * 2, offers + more, strict=True):
        await deliver(peer, work)
    assert (await stage.ended(first)).state == "FINISHED"
    assert (await stage.ended(second)).state == "FINISHED"


async def test_a_watcher_sees_every_event_once_and_ends_with_the_run(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)

    async def watch() -> list[Any]:
        async def one() -> Any:
            yield pb.WatchEventsRequest(run_id=run_id, follow=True)

        stream = stage.channel().stream(METHODS["WatchEvents"], one())
        return [event async for answer in stream for event in answer.events]

    watcher = asyncio.create_task(watch())
    for peer, offer in zip(peers, offers, strict=True):
        await deliver(peer, offer)
    seen = await asyncio.wait_for(watcher, 20)
    assert seen[0].kind == "run.submitted"
    assert seen[-1].kind == "run.finished"
    assert [event.sequence for event in seen] == sorted({event.sequence for event in seen})
    assert all(event.reason for event in seen)


async def test_a_model_is_pulled_from_any_offset(stage: Any) -> None:
    run_id, peers, offers = await cast(stage)
    for peer, offer in zip(peers, offers, strict=True):
        await deliver(peer, offer)
    run = await stage.ended(run_id)

    async def pull(**request: Any) -> bytes:
        async def one() -> Any:
            yield pb.PullModelRequest(run_id=run_id, **request)

        stream = stage.channel().stream(METHODS["PullModel"], one())
        answers = [answer async for answer in stream]
        return b"".join(answer.chunk.data for answer in answers[1:])

    whole = await pull()
    assert await pull(offset=100) == whole[100:]
    assert await pull(round=0) != whole
    assert run.bytes_down == 0  # an admin's pull is no peer's traffic
    with pytest.raises(NotFoundError):
        await pull(round=9)


# -- when something breaks inside ------------------------------------------------------------------------------


async def test_a_coordinator_whose_loop_has_ended_says_so(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = stage.running.coordinator

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("coordinator.membership.decide", broken)
    told = await asyncio.wait_for(asyncio.shield(coordinator.failed), 20)
    assert "a defect" in told


async def test_while_the_store_refuses_nothing_is_lost(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk under the database: an update is told to come again, and the round waits for it."""
    run_id, peers, offers = await cast(stage)
    commit = stage.store.commit

    async def full(*_: Any) -> list[int]:
        raise StorageError("storage.disk_full", "no space left")

    path = peers[0].write(offers[0], torch.ones(SIZE))
    begin = peers[0].begin(offers[0], path)
    await peers[0].channel.unary(BEGIN_UPDATE, begin, timeout_seconds=10)
    await peers[0].send(begin, *stage.chunks_of(path))
    monkeypatch.setattr(stage.store, "commit", full)
    with pytest.raises(StorageError):
        await peers[0].commit(begin)
    monkeypatch.setattr(stage.store, "commit", commit)
    receipt = await peers[0].commit(begin)
    assert receipt.digest == begin.header.digest
    await deliver(peers[1], offers[1])
    assert (await stage.ended(run_id)).state == "FINISHED"
