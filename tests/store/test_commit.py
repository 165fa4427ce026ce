import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, event

from coordinator.engine.state import AssignmentStatus
from coordinator.store import SqlStore, Store, Transfer
from muster.errors import InternalError, StateError
from muster.runtime import failpoints


async def test_commit_gives_each_transition_its_event_number(store: Store, script: Any) -> None:
    first = await store.commit([script.peer("a"), script.run(), script.round(1)])
    counters = script.row("", "run", {"run_id": "r1"}, "RUNNING", last_round=1)
    second = await store.commit([script.assignment(1, "a"), counters, script.model(0)])

    assert first == [1, 2, 3]
    assert second == [4, 0, 5]
    told = await store.events()
    assert [row.kind for row in told] == [
        "peer.enrolled", "run.submitted", "round.planned", "assignment.offered", "model.created",
    ]  # fmt: skip
    offered = told[3]
    assert (offered.run_id, offered.round, offered.peer_id, offered.at) == ("r1", 1, "a", 100.0)
    assert offered.assignment_id == "r1.1.a.1"
    assert offered.reason == "assignment.offered, as told"
    assert offered.data == {"state": "OFFERED"}
    assert offered.actor == "engine"
    run = await store.run("r1")
    assert run is not None
    assert run.last_round == 1


async def test_an_event_keeps_who_caused_it(store: Store, script: Any) -> None:
    actors = ["peer:a", "coordinator", "admin"]
    await store.commit([replace(script.peer(f"p{i}"), actor=each) for i, each in enumerate(actors)])
    assert [row.actor for row in await store.events()] == actors
    assert [row.actor for row in await store.recent_events(peer_id="p2")] == ["admin"]


async def test_rows_touched_twice_in_one_commit_keep_their_order(store: Store, script: Any) -> None:
    key = {"run_id": "r1", "number": 1}
    await store.commit(
        [
            script.run(),
            script.round(1, "PLANNED"),
            script.row("round.opened", "round", key, "PLANNED", state="OPEN", opened_at=5.0),
            script.row("round.aggregating", "round", key, "OPEN", state="AGGREGATING"),
        ]
    )
    found = await store.round("r1", 1)
    assert found is not None
    assert (found.state, found.opened_at) == ("AGGREGATING", 5.0)


async def test_a_mismatch_refuses_the_whole_commit(store: Store, script: Any) -> None:
    await store.commit([script.peer("a"), script.peer("b"), script.run(), script.round(1)])
    await store.commit([script.assignment(1, "a"), script.assignment(1, "b", "TRAINING")])

    with pytest.raises(StateError, match=r"r1\.1\.b\.1 is not OFFERED") as caught:
        await store.commit(
            [
                script.model(0),
                script.progress(1, "a", "OFFERED", "ACCEPTED"),
                script.progress(1, "b", "OFFERED", "ACCEPTED"),
            ],
            [Transfer(run_id="r1", round=1, peer_id="a", direction="up", bytes=9)],
        )

    assert caught.value.id == "store.conflict"
    assert len(await store.events()) == 6
    found = await store.round("r1", 1)
    assert found is not None
    assert [(row.peer_id, row.state) for row in found.assignments] == [("a", "OFFERED"), ("b", "TRAINING")]
    assert found.bytes_up == 0
    assert await store.model("r1") is None


async def test_a_row_that_must_be_new_is_refused_when_it_is_there(store: Store, script: Any) -> None:
    await store.commit([script.run(), script.model(0)])
    with pytest.raises(StateError) as caught:
        await store.commit([script.round(1), script.model(0, digest="other")])
    assert caught.value.id == "store.conflict"
    assert await store.rounds("r1") == []


async def test_one_round_makes_one_version(store: Store, script: Any) -> None:
    await store.commit([script.run(), script.model(0), script.model(1)])
    with pytest.raises(StateError) as caught:
        await store.commit([script.model(2, round=1)])
    assert caught.value.id == "store.conflict"


async def test_one_request_makes_one_run(store: Store, script: Any) -> None:
    await store.commit([script.run(request_id="same")])
    with pytest.raises(StateError) as caught:
        await store.commit([script.run("r2", request_id="same")])
    assert caught.value.id == "store.conflict"
    found = await store.run_by_request("same")
    assert found is not None
    assert found.run_id == "r1"


async def test_a_peer_delivers_once_in_a_round_and_role(store: Store, script: Any) -> None:
    await store.commit([script.peer("a"), script.run(), script.round(1), script.round(2), script.model(0)])
    await store.commit(
        [
            script.assignment(1, "a", "DELIVERED"),
            script.assignment(1, "a", "LOST", attempt=2),
            script.assignment(1, "a", "DELIVERED", role="evaluate"),
            script.assignment(2, "a", "DELIVERED"),
        ]
    )
    with pytest.raises(StateError) as caught:
        await store.commit([script.progress(1, "a", "LOST", "DELIVERED", attempt=2)])
    assert caught.value.id == "store.conflict"


async def test_a_row_cannot_refer_to_what_is_not_there(store: Store, script: Any) -> None:
    with pytest.raises(StateError) as caught:
        await store.commit([script.round(1)])
    assert caught.value.id == "store.conflict"
    assert await store.events() == []


async def test_references_are_checked_at_the_end_of_a_commit(store: Store, script: Any) -> None:
    await store.commit([script.assignment(1, "a"), script.round(1), script.run(), script.peer("a")])
    assert len(await store.load_runs()) == 1


async def test_before_empty_writes_the_row_whether_or_not_it_is_there(store: Store, script: Any) -> None:
    def seen(peer_id: str, **values: Any) -> Any:
        return script.row("", "peer", {"peer_id": peer_id}, "", **values)

    def moment(digest: str) -> Any:
        key = {"run_id": "r1", "version": 0, "name": "momentum"}
        return script.row("", "optimizer_state", key, "", digest=digest)

    await store.commit([script.peer("a", device="cpu"), script.run(), script.model(0), moment("old")])
    await store.commit(
        [
            seen("a", state="LOST", seen_at=7.0),
            seen("b", state="ACTIVE", seen_at=8.0),
            moment("new"),
            seen("a", seen_at=9.0),  # a part of the row: what is not told stays
        ]
    )
    told = [(peer.peer_id, peer.state, peer.seen_at, peer.device) for peer in await store.load_peers()]
    assert told == [("a", "LOST", 9.0, "cpu"), ("b", "ACTIVE", 8.0, "")]
    assert await store.optimizer_states("r1", 0) == {"momentum": "new"}


async def test_a_row_that_is_removed_is_gone_if_it_was_as_told(store: Store, script: Any) -> None:
    def forgotten(peer_id: str) -> Any:
        told = script.row("peer.forgotten", "peer", {"peer_id": peer_id}, "PENDING")
        return replace(told, removes=True)

    await store.commit([script.peer("a", "PENDING"), script.peer("b", "PENDING"), script.peer("c")])
    await store.commit([forgotten("a"), forgotten("b")])
    assert [peer.peer_id for peer in await store.load_peers()] == ["c"]
    with pytest.raises(StateError) as caught:
        await store.commit([forgotten("c")])
    assert caught.value.id == "store.conflict"
    assert [peer.peer_id for peer in await store.load_peers()] == ["c"]


async def test_text_that_a_database_refuses_is_stored_all_the_same(store: Store, script: Any) -> None:
    lost = script.assignment(1, "a", AssignmentStatus.LOST, traceback="Error: \0 or \N{SNOWMAN}")
    await store.commit([script.peer("a"), script.run(), script.round(1), lost])
    found = await store.assignment("r1.1.a.1")
    assert found is not None
    assert found.traceback == "Error: \ufffd or \N{SNOWMAN}"
    assert found.state == "LOST"


async def test_transfers_add_up(store: Store, script: Any) -> None:
    def sent(direction: str, size: int, peer_id: str = "a") -> Transfer:
        return Transfer(run_id="r1", round=1, peer_id=peer_id, direction=direction, bytes=size)

    await store.commit([script.peer("a"), script.peer("b"), script.run(), script.round(1)], [sent("up", 5)])
    await store.commit([], [sent("up", 2**40), sent("up", 1), sent("down", 3), sent("up", 10, "b")])
    run, peer, round_ = await store.run("r1"), await store.peer("a"), await store.round("r1", 1)
    assert run is not None
    assert peer is not None
    assert round_ is not None
    assert (run.bytes_up, run.bytes_down) == (2**40 + 16, 3)
    assert (round_.bytes_up, round_.bytes_down) == (2**40 + 16, 3)
    assert (peer.bytes_up, peer.bytes_down) == (2**40 + 6, 3)


async def test_an_error_before_the_commit_leaves_nothing(
    store: Store, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _arm(monkeypatch, "round.planned.before:error")
    with pytest.raises(InternalError, match=r"round\.planned\.before"):
        await store.commit([script.run(), script.round(1)])
    assert await store.runs() == []
    assert await store.events() == []


async def test_an_error_after_the_commit_leaves_all_of_it(
    store: Store, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _arm(monkeypatch, "run.submitted.after:error")
    with pytest.raises(InternalError, match=r"run\.submitted\.after"):
        await store.commit([script.run(), script.round(1)])
    assert len(await store.rounds("r1")) == 1
    assert await store.wait_for_events(after=0) == 2


async def test_a_cancelled_caller_does_not_stop_the_transaction(store: Store, script: Any) -> None:
    await store.commit([script.peer("a")])
    caller = asyncio.create_task(store.commit([script.run()]))
    await asyncio.sleep(0)  # it begins
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await store.wait_for_events(after=1) == 2
    assert [run.run_id for run in await store.runs()] == ["r1"]


async def test_many_commits_at_once_are_taken_one_after_the_other(store: Store, script: Any) -> None:
    numbers = await asyncio.gather(*(store.commit([script.peer(f"p{i:02}")]) for i in range(40)))
    assert [number for (number,) in numbers] == list(range(1, 41))
    assert [peer.peer_id for peer in await store.peers()] == [f"p{i:02}" for i in range(40)]


async def test_like_transitions_share_a_statement(sql_store: SqlStore, script: Any) -> None:
    """A commit costs its statements and its fsync, so a wide round must not cost more than a narrow one."""
    peers = [f"p{i:02}" for i in range(20)]
    await sql_store.commit([script.run(), *map(script.peer, peers)])
    statements: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement.partition("(")[0])

    event.listen(Engine, "before_cursor_execute", count)
    try:
        await sql_store.commit([script.round(1), *(script.assignment(1, peer_id) for peer_id in peers)])
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    inserts = [statement for statement in statements if statement.startswith("INSERT")]
    assert len(inserts) == 3, inserts
    assert len(statements) == 5, statements  # the one that makes the writer the only one; the newest number


def _arm(monkeypatch: pytest.MonkeyPatch, points: str) -> None:
    monkeypatch.setattr(failpoints, "_armed", None)  # put back afterwards
    failpoints.arm({failpoints.VARIABLE: points})
