"""Runs as an admin submits, steers, watches and pulls them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from coordinator.rpc.run_commands import SUBMISSIONS_MAX
from coordinator.submission.checks import build_schedule
from muster.errors import (
    ConfigError,
    MusterError,
    NotFoundError,
    StateError,
    StorageError,
    UnreachableError,
)
from muster.wire import ADMIN, BEGIN_UPDATE
from protos.v1 import admin_pb2 as pb

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


async def test_the_same_request_submits_once(stage: Any) -> None:
    run_id = await stage.submit()
    row = await stage.store.run(run_id)
    request = pb.SubmitRunRequest(spec_json=row.spec_json, request_id="abc")
    runs = await asyncio.gather(*(stage.call("SubmitRun", request) for _ in range(3)))
    assert len({answer.run.run_id for answer in runs}) == 1


async def test_few_submissions_wait_and_the_others_are_told(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await stage.store.run(await stage.submit())
    going, begun = asyncio.Event(), asyncio.Event()
    submissions = stage.running.coordinator.submissions
    submit = submissions.submit

    async def slowly(event: Any) -> Any:
        begun.set()
        await going.wait()
        return await submit(event)

    monkeypatch.setattr(submissions, "submit", slowly)
    calls = [
        asyncio.create_task(stage.call("SubmitRun", pb.SubmitRunRequest(spec_json=row.spec_json)))
        for _ in range(SUBMISSIONS_MAX)
    ]
    await asyncio.wait_for(begun.wait(), 10)
    await stage.call("GetStatus", pb.GetStatusRequest())  # behind all those
    with pytest.raises(UnreachableError) as caught:
        await stage.call("SubmitRun", pb.SubmitRunRequest(spec_json=row.spec_json))
    assert caught.value.id == "transport.busy"
    going.set()
    runs = await asyncio.gather(*calls)
    assert len({answer.run.run_id for answer in runs}) == SUBMISSIONS_MAX
    await stage.call("SubmitRun", pb.SubmitRunRequest(spec_json=row.spec_json))


async def test_what_a_spec_names_must_be_installed(stage: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        await stage.submit(aggregation={"rule": "kurm", "faults": 1})
    assert "krum" in str(caught.value)
    with pytest.raises(ConfigError):
        await stage.call("SubmitRun", pb.SubmitRunRequest(spec_json="{not json"))
    assert (await stage.call("ListRuns", pb.ListRunsRequest())).runs == []


async def test_what_cannot_be_combined_is_told_at_once(stage: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        await stage.submit(aggregation={"rule": "median", "options": {"colour": "red"}})
    assert caught.value.id == "spec.invalid"
    assert "colour" in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("method", "request_", "error_id"),
    [
        ("GetRun", pb.GetRunRequest(run_id="x"), "run.not_found"),
        ("PauseRun", pb.PauseRunRequest(run_id="x"), "run.not_found"),
        ("StopRun", pb.StopRunRequest(run_id="x"), "run.not_found"),
        ("ExplainRun", pb.ExplainRunRequest(run_id="x"), "run.not_found"),
        ("GetRound", pb.GetRoundRequest(run_id="x", number=1), "run.not_found"),
        ("GetPeer", pb.GetPeerRequest(peer_id="x"), "peer.not_found"),
        ("QuarantinePeer", pb.QuarantinePeerRequest(peer_id="x"), "peer.not_found"),
        ("RemovePeer", pb.RemovePeerRequest(peer_id="x"), "peer.not_found"),
    ],
)
async def test_what_is_not_there_is_told_with_where_to_look(
    stage: Any, method: str, request_: Any, error_id: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        await stage.call(method, request_)
    assert caught.value.id == error_id
    assert caught.value.fix.startswith("muster ")


async def test_a_run_that_waits_tells_for_whom(stage: Any) -> None:
    await stage.peer("ward")
    few = await stage.submit(round={"peers_min": 3})
    await stage.until(few, "run.started")
    assert (await why(stage, few)).sentence == (
        "the run is RUNNING: round 1 waits for peers: 1 of 3 are active and connected"
    )
    bound = await stage.submit(round={"peers_min": 1}, aggregation={"rule": "krum", "faults": 1})
    await stage.until(bound, "run.started")
    told = (await why(stage, bound)).sentence
    assert "round 1 waits for more peers, 1 are active and connected" in told
    assert "krum needs n > 2f + 2" in told


async def test_a_broken_task_fails_its_run_with_the_tasks_own_words(stage: Any) -> None:
    run = await stage.ended(await stage.submit(task="hand_task:Broken"))
    assert run.state == "FAILED"
    assert "no such layer" in run.reason


async def test_below_the_rules_bound_rounds_are_skipped_and_the_run_pauses_with_the_bound(stage: Any) -> None:
    limits = {"peers_min": 3, "quorum": 0.6, "deadline_seconds": 60, "grace_seconds": 0, "skips_max": 2}
    run_id, peers, offers = await cast(
        stage, count=3, round=limits, aggregation={"rule": "trimmed-mean", "faults": 1}
    )
    for number in (1, 2):
        assert {offer.round for offer in offers} == {number}
        nan = torch.full((SIZE,), float("nan"))
        with pytest.raises(MusterError):
            await peers[0].deliver(offers[0], peers[0].write(offers[0], nan))
        await deliver(peers[1], offers[1])  # so it is not the model that nobody can train
        if number == 1:
            offers = [await peer.offer() for peer in peers]
    await stage.until(run_id, "run.paused")
    run = (await stage.call("GetRun", pb.GetRunRequest(run_id=run_id))).run
    assert (run.state, run.rounds_skipped, run.needs_resume) == ("PAUSED", 2, True)
    assert run.reason.startswith("peer-0: ")
    assert "update.not_finite" in run.reason
    assert run.reason.endswith("the run is paused, since 2 rounds in a row were skipped (round.skips_max)")
    skipped = await stage.until(run_id, "round.skipped")
    assert "trimmed-mean needs n > 2f: n is 2, f is 1" in skipped.reason
    assert "update.not_finite" in skipped.reason  # and who cost it the third
    round_ = (await stage.call("GetRound", pb.GetRoundRequest(run_id=run_id, number=1))).round
    assert (round_.state, round_.reason) == ("SKIPPED", skipped.reason)


async def test_pause_lets_the_round_end_resume_opens_the_next_and_stop_cancels(stage: Any) -> None:
    run_id, peers, offers = await cast(stage, rounds=3)
    await stage.call("PauseRun", pb.PauseRunRequest(run_id=run_id))
    for peer, offer in zip(peers, offers, strict=True):
        await deliver(peer, offer)
    await stage.until(run_id, "round.committed")
    run = (await stage.call("GetRun", pb.GetRunRequest(run_id=run_id))).run
    assert (run.state, run.needs_resume) == ("PAUSED", False)  # nobody has to mend anything
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

        stream = stage.channel().stream(ADMIN["WatchEvents"], one())
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

        stream = stage.channel().stream(ADMIN["PullModel"], one())
        answers = [answer async for answer in stream]
        return b"".join(answer.chunk.data for answer in answers[1:])

    whole = await pull()
    assert await pull(offset=100) == whole[100:]
    assert await pull(round=0) != whole
    assert run.bytes_down == 0  # an admin's pull is no peer's traffic
    with pytest.raises(NotFoundError):
        await pull(round=9)


# -- when something breaks inside ------------------------------------------------------------------------------


async def test_versions_that_are_kept_no_longer_are_listed_as_pruned(stage: Any) -> None:
    peer = await stage.peer("peer")
    run_id = await stage.submit(rounds=1, round={"peers_min": 1, "quorum": 1.0, "deadline_seconds": 60})
    offer = await peer.offer()
    await peer.deliver(offer, peer.write(offer, torch.ones(SIZE)))
    await stage.ended(run_id)
    stage.running.coordinator.blobs.path(offer.work.base.digest).unlink()
    listed = (await stage.call("ListModels", pb.ListModelsRequest(run_id=run_id))).models
    assert [(model.version, model.pruned) for model in listed] == [(0, True), (1, False)]


async def test_a_coordinator_whose_loop_has_ended_says_so(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = stage.running.coordinator

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("coordinator.membership.detector.decide", broken)
    told = await asyncio.wait_for(asyncio.shield(coordinator.failed), 20)
    assert "a defect" in told.message


async def test_while_the_store_refuses_nothing_is_lost(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk under the database: an update is told to come again, and the round waits for it."""
    run_id, peers, offers = await cast(stage)
    commit = stage.store.commit

    async def full(*_: Any, **__: Any) -> list[int]:
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


async def test_a_run_that_this_installation_would_refuse_is_unreadable_and_the_others_go_on(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, *_ = await cast(stage)
    other = await stage.submit(round=ALL, aggregation={"rule": "median"})
    await stage.stop()

    def refuse(spec: Any, text: str = "") -> Any:
        if spec.aggregation.rule == "caf":
            raise ConfigError("spec.invalid", "there is no rule 'caf'")
        return build_schedule(spec)

    with monkeypatch.context() as patch:
        patch.setattr("coordinator.runs.check_spec", refuse)
        await stage.start()
        answer = await stage.call("ListRuns", pb.ListRunsRequest())
        runs = {run.run_id: run for run in answer.runs}
        assert runs[run_id].state == "UNREADABLE"
        assert "there is no rule 'caf'" in runs[run_id].reason
        assert runs[other].state in ("QUEUED", "RUNNING")
        assert "UNREADABLE" in (await why(stage, run_id)).sentence
        with pytest.raises(StateError) as caught:
            await stage.call("PauseRun", pb.PauseRunRequest(run_id=run_id))
        assert "there is no rule 'caf'" in caught.value.cause
        await stage.stop()
    await stage.start()  # nothing is lost
    run = (await stage.call("GetRun", pb.GetRunRequest(run_id=run_id))).run
    assert run.state == "RUNNING"


async def test_a_run_that_is_unreadable_can_be_ended(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, *_ = await cast(stage)
    await stage.stop()

    def refuse(spec: Any, text: str = "") -> Any:
        raise ConfigError("spec.invalid", "there is no such rule")

    monkeypatch.setattr("coordinator.runs.check_spec", refuse)
    await stage.start()
    stopped = (await stage.call("StopRun", pb.StopRunRequest(run_id=run_id, reason="enough"))).run
    assert (stopped.state, stopped.reason) == ("CANCELLED", "cancelled: enough")
    assert stopped.ended_at > 0
    round_ = (await stage.call("GetRound", pb.GetRoundRequest(run_id=run_id, number=1))).round
    assert round_.state == "FAILED"
    assert {each.state for each in round_.assignments} == {"EXPIRED"}
    assert (await stage.until(run_id, "run.cancelled")).reason == "cancelled: enough"
    await stage.stop()
    await stage.start()
    assert not stage.running.coordinator.runs.unreadable


async def test_whoever_follows_a_run_hears_its_last_event(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one who asks while the run has left memory and its end is not stored yet."""
    run_id = await stage.submit()
    commit, wait = stage.store.commit, stage.store.wait_for_events
    reached, released, waiting = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def held(transitions: Any, *rest: Any, **more: Any) -> Any:
        if any(each.kind == "run.cancelled" for each in transitions):
            reached.set()
            await released.wait()
        return await commit(transitions, *rest, **more)

    async def noted(after: int) -> int:
        waiting.set()
        return int(await wait(after))

    monkeypatch.setattr(stage.store, "commit", held)
    monkeypatch.setattr(stage.store, "wait_for_events", noted)
    stopping = asyncio.create_task(stage.call("StopRun", pb.StopRunRequest(run_id=run_id, reason="enough")))
    await asyncio.wait_for(reached.wait(), 10)
    kinds: list[str] = []

    async def follow() -> None:
        request = pb.WatchEventsRequest(run_id=run_id, follow=True)
        async for answer in stage.channel().stream(ADMIN["WatchEvents"], _one(request)):
            kinds.extend(event.kind for event in answer.events)

    following = asyncio.create_task(follow())
    looked = asyncio.create_task(waiting.wait())
    await asyncio.wait({following, looked}, return_when=asyncio.FIRST_COMPLETED)
    released.set()
    await asyncio.wait_for(asyncio.gather(following, stopping, looked), 10)
    assert kinds[-1] == "run.cancelled"


async def _one(request: Any) -> AsyncIterator[Any]:
    yield request
