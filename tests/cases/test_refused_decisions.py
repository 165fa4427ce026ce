"""A decision that cannot be made or stored costs the run that it is about; a row that cannot be read costs its run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import text

from coordinator.engine.state import Tick, Transition
from coordinator.events import Events
from coordinator.journal import Journal, Outcome
from coordinator.runs import engine
from coordinator.store import SqlStore
from muster.errors import StateError
from muster.wire import ADMIN
from protos.v1 import admin_pb2 as pb
from protos.v1 import membership_pb2
from tests.coordinator.conftest import Stage

ONE = {"peers_min": 1, "quorum": 1.0, "deadline_seconds": 60}


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, monkeypatch)
    made.settings["database_url"] = database_url
    await made.start()
    yield made
    await made.stop()


async def deliver(stage: Stage, peer: Any, run_id: str) -> Any:
    while (offer := await peer.offer()).run_id != run_id:
        pass
    await peer.deliver(offer, peer.write(offer, torch.ones(5)))
    return await stage.ended(run_id)


# -- what the store refuses -------------------------------------------------------------------------------------------


def peer_row(name: str, **values: Any) -> Transition:
    return Transition(
        kind="peer.enrolled",
        entity="peer",
        key={"peer_id": name},
        before=None,
        values={"state": "ACTIVE", **values},
        reason="as asked",
        at=1.0,
        peer_id=name,
    )


async def test_one_decision_of_a_batch_cannot_be_stored_and_the_others_are(database_url: str) -> None:
    store = await SqlStore.open(database_url)
    events = Events()
    journal = Journal(store, events)
    journal.count_bytes("run", 1, "good-0", "up", 5)
    undone: list[str] = []
    done: list[str] = []
    events.attach(lambda notice: done.append(notice.transitions[0].peer_id))

    def decision(name: str, **values: Any) -> Any:
        return lambda: Outcome(
            transitions=[peer_row(name, **values)],
            undo=lambda: undone.append(name),
        )

    rows = {
        "good-0": {},
        "huge": {"epoch": 2**70},
        "good-1": {"device": "a\0\udce9"},
        "odd": {"epoch": object()},
    }
    asked = [asyncio.ensure_future(journal.submit(decision(name, **values))) for name, values in rows.items()]
    writer = asyncio.ensure_future(journal.run())
    got = await asyncio.gather(*asked, return_exceptions=True)
    assert done == ["good-0", "good-1"]
    assert isinstance(got[1], StateError) and got[1].id == "store.unstorable"
    assert isinstance(got[3], Exception)
    assert undone.count("huge") == 2  # with the batch, and alone
    await journal.submit(decision("later"))  # behind all that was left of the batch
    assert {each.peer_id: each.bytes_up for each in await store.peers()} == {
        "good-0": 5,
        "good-1": 0,
        "later": 0,
    }
    assert not writer.done()
    writer.cancel()
    await store.close()


async def test_a_report_that_cannot_be_stored_costs_its_assignment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await stage.peer("ward")
    run_id = await stage.submit(round=ONE, rounds=1, evaluate={"every": 1, "on": ["peers"]})
    offer = await peer.offer()
    await peer.deliver(offer, peer.write(offer, torch.ones(5)))
    monkeypatch.setattr("coordinator.rpc.convert.membership.EXAMPLES_MAX", 2**70)
    peer.report(await peer.offer(), membership_pb2.ASSIGNMENT_PHASE_EVALUATED, example_count=2**63)
    lost = await stage.until(run_id, "assignment.lost")
    assert "cannot be stored" in lost.reason
    assert (await stage.ended(run_id)).state == "FINISHED"
    assert peer.reader is not None and not peer.reader.done()


async def test_a_decision_that_fails_ends_its_run_with_a_sentence_and_the_others_go_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await stage.peer("ward")
    bad, good = await stage.submit(name="bad", round=ONE), await stage.submit(name="good", round=ONE)
    for run_id in (bad, good):
        await stage.until(run_id, "round.opened")
    decide = engine.decide

    def broken(state: Any, event: Any, *rest: Any) -> Any:
        if state.run_id == bad and isinstance(event, Tick):
            raise ZeroDivisionError("a plug-in's own")
        return decide(state, event, *rest)

    monkeypatch.setattr(engine, "decide", broken)
    assert stage.running is not None
    await stage.running.coordinator.runs.tick_all()
    failed = await stage.ended(bad)
    assert failed.state == "FAILED"
    assert "ZeroDivisionError: a plug-in's own" in failed.reason
    assert (await deliver(stage, peer, good)).state == "FINISHED"
    assert not stage.running.coordinator.failed.done()


async def test_a_run_of_which_nothing_more_can_be_stored_stands_aside(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await stage.peer("ward")
    bad, good = await stage.submit(name="bad", round=ONE), await stage.submit(name="good", round=ONE)
    for run_id in (bad, good):  # each has a worker of its own: neither waits for the other
        await stage.until(run_id, "round.opened")
    commit = stage.store.commit

    async def refusing(transitions: Any, transfers: Any = (), **more: Any) -> Any:
        if any(each.run_id == bad for each in transitions):
            raise StateError("store.unstorable", "a value is nothing that the database can hold")
        return await commit(transitions, transfers, **more)

    monkeypatch.setattr(stage.store, "commit", refusing)
    assert stage.running is not None
    coordinator = stage.running.coordinator
    await coordinator.runs.post_surely(membership_event(bad))
    assert bad in coordinator.runs.unreadable
    run = (await stage.call("GetRun", pb.GetRunRequest(run_id=bad))).run
    assert run.state == "UNREADABLE"
    assert (await deliver(stage, peer, good)).state == "FINISHED"
    monkeypatch.undo()


def membership_event(run_id: str) -> Any:
    from coordinator.engine.state import PauseRequested

    return PauseRequested(run_id=run_id)


# -- what cannot be read back ----------------------------------------------------------------------------------------


DAMAGE = {
    "a spec that is no JSON": "UPDATE runs SET spec_json = '{\"x' WHERE run_id = :run",
    "a spec of another version": 'UPDATE runs SET spec_json = \'{"task": "a:B", "shards": 3}\' WHERE run_id = :run',
    "a state that nobody knows": "UPDATE runs SET state = 'ASLEEP' WHERE run_id = :run",
    "a cohort that is no JSON": "UPDATE rounds SET cohort_json = '[' WHERE run_id = :run",
    "metrics that are no JSON": "UPDATE assignments SET metrics_json = 'NaN,' WHERE run_id = :run",
    "numbers out of range": "UPDATE assignments SET attempt = -5, examples = -1, size_bytes = -1 WHERE run_id = :run",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_row_costs_its_own_run(stage: Stage, damage: str) -> None:
    peer = await stage.peer("ward")
    bad, good = await stage.submit(name="bad", round=ONE), await stage.submit(name="good", round=ONE)
    for run_id in (bad, good):
        await stage.until(run_id, "round.opened")
    await peer.leave()
    await stage.store._database.write(lambda c: c.execute(text(DAMAGE[damage]), {"run": bad}))
    await stage.stop()
    await stage.start()
    peer = await stage.peer("ward")
    runs = {run.run_id: run for run in (await stage.call("ListRuns", pb.ListRunsRequest())).runs}
    assert runs.keys() == {bad, good}
    if "range" not in damage and "metrics" not in damage:  # with which a run can go on
        assert runs[bad].state == "UNREADABLE"
        assert "cannot be read" in runs[bad].reason
    for name, request in (
        ("ExplainRun", pb.ExplainRunRequest(run_id=bad)),
        ("ListRounds", pb.ListRoundsRequest(run_id=bad)),
        ("GetRound", pb.GetRoundRequest(run_id=bad, number=1)),
        ("ListModels", pb.ListModelsRequest(run_id=bad)),
        ("GetStatus", pb.GetStatusRequest()),
    ):
        assert await stage.call(name, request)
    assert (await deliver(stage, peer, good)).state == "FINISHED"
    stopped = (await stage.call("StopRun", pb.StopRunRequest(run_id=bad))).run
    assert stopped.state == "CANCELLED"
    assert (await stage.call("RemoveRun", pb.RemoveRunRequest(run_id=bad))).run.run_id == bad


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL checks what it is given
async def test_text_that_is_no_text_costs_nothing(stage: Stage) -> None:
    await stage.peer("ward")
    run_id = await stage.submit(round=ONE)
    await stage.until(run_id, "round.opened")

    def damage(connection: Any) -> None:
        for table in ("runs", "rounds", "assignments", "events"):
            connection.execute(text(f"UPDATE {table} SET reason = CAST(x'ff00e9' AS TEXT)"))
        connection.execute(text("UPDATE peers SET device = CAST(x'80' AS TEXT), state = 'HOVERING'"))

    await stage.store._database.write(damage)
    await stage.stop()
    await stage.start()
    (run,) = (await stage.call("ListRuns", pb.ListRunsRequest())).runs
    assert run.state == "RUNNING"
    (peer,) = (await stage.call("ListPeers", pb.ListPeersRequest())).peers
    assert (peer.state, peer.device) == ("HOVERING", "\ufffd")

    async def one() -> Any:
        yield pb.WatchEventsRequest()

    stream = stage.channel().stream(ADMIN["WatchEvents"], one())
    assert [event async for answer in stream for event in answer.events]
