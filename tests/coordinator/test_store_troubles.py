"""A write that fails is tried again, decided anew, or costs its run, by what went wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from coordinator.engine.state import PeerGone, Transition
from coordinator.journal import CONFLICTS_MAX
from coordinator.store import Fence, MemoryStore, Transfer, Trouble, trouble
from coordinator.store.faults import conflict, fenced, unstorable
from muster.errors import InternalError, StorageError
from protos.v1 import admin_pb2 as pb
from protos.v1 import membership_pb2

ONE = {"peers_min": 1, "quorum": 1.0, "deadline_seconds": 60}


def unavailable() -> StorageError:
    return StorageError("store.unavailable", "the database does not answer")


def damaged() -> StorageError:
    return StorageError("store.damaged", "the database is not sound")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (unavailable(), Trouble.TRANSIENT),
        (StorageError("storage.disk_full", "no room"), Trouble.TRANSIENT),
        (conflict("not as believed", ""), Trouble.CONFLICT),
        (fenced("here", "somebody"), Trouble.FENCED),
        (unstorable("too large"), Trouble.PERMANENT),
        (damaged(), Trouble.PERMANENT),
        (ZeroDivisionError(), Trouble.PERMANENT),
        (InternalError("failpoint.error", "as told"), Trouble.PERMANENT),
    ],
)
def test_what_went_wrong_tells_what_to_do(error: Exception, expected: Trouble) -> None:
    assert trouble(error) is expected


class RefusingStore(MemoryStore):
    """Refuses commits as `refuse` says, which is asked for each with its transitions."""

    def __init__(self) -> None:
        super().__init__()
        self.refuse: Callable[[Sequence[Transition]], Exception | None] = lambda _transitions: None
        self.refused = 0

    async def commit(
        self,
        transitions: Sequence[Transition],
        transfers: Sequence[Transfer] = (),
        *,
        fence: Fence | None = None,
    ) -> list[int]:
        if (error := self.refuse(transitions)) is not None:
            self.refused += 1
            raise error
        return await super().commit(transitions, transfers, fence=fence)


@pytest.fixture
async def refusing(stage: Any, monkeypatch: pytest.MonkeyPatch) -> RefusingStore:
    """Of a stage that has started anew with it."""
    monkeypatch.setattr("coordinator.journal.STORE_RETRY_SECONDS", 0.01)
    await stage.stop()
    store = RefusingStore()
    await stage.start(store=store, data_dir=stage.folder / "refusing")
    return store


async def deliver(stage: Any, peer: Any, run_id: str) -> Any:
    while (offer := await peer.offer()).run_id != run_id:
        pass
    await peer.deliver(offer, peer.write(offer, torch.ones(5)))
    return await stage.ended(run_id)


async def test_a_store_that_takes_nothing_for_a_while_is_asked_again(
    stage: Any, refusing: RefusingStore
) -> None:
    peer = await stage.peer("a")
    run_id = await stage.submit(round=ONE)
    left = 5

    def refuse(transitions: Sequence[Transition]) -> Exception | None:
        nonlocal left
        if not left or all(each.kind != "model.created" or each.round == 0 for each in transitions):
            return None
        left -= 1
        return unavailable()

    refusing.refuse = refuse
    run = await deliver(stage, peer, run_id)
    assert (run.state, refusing.refused) == ("FINISHED", 5)


async def test_rows_that_are_not_as_believed_are_read_anew_and_the_run_goes_on(
    stage: Any, refusing: RefusingStore
) -> None:
    peer = await stage.peer("a")
    run_id = await stage.submit(round=ONE)
    offer = await peer.offer()
    key = {"assignment_id": offer.assignment_id}
    moved = Transition(
        kind="assignment.training",
        entity="assignment",
        key=key,
        before="OFFERED",
        values={"state": "TRAINING", "reason": "by somebody else"},
        reason="by somebody else",
        at=1.0,
        run_id=run_id,
        assignment_id=offer.assignment_id,
        peer_id="a",
    )
    await refusing.commit([moved])
    peer.report(offer, membership_pb2.ASSIGNMENT_PHASE_ACCEPTED)  # starts from a row that is offered
    again = await peer.offer()  # what is under way is ordered again
    assert again.assignment_id == offer.assignment_id
    held = stage.running.coordinator.runs[run_id].rounds[1].assignments[offer.assignment_id]
    assert (held.status, held.reason) == ("TRAINING", "by somebody else")
    await peer.deliver(offer, peer.write(offer, torch.ones(5)))
    assert (await stage.ended(run_id)).state == "FINISHED"


async def test_a_run_that_was_ended_by_another_writer_is_let_go(stage: Any, refusing: RefusingStore) -> None:
    peer = await stage.peer("a")
    run_id = await stage.submit(round=ONE)
    offer = await peer.offer()
    await refusing.end_unread(run_id, "by somebody else", 1.0)
    peer.report(offer, membership_pb2.ASSIGNMENT_PHASE_ACCEPTED)
    ended = await peer.hear("run_ended")
    assert ended.run_ended.run_id == run_id
    assert run_id not in stage.running.coordinator.runs
    run = (await stage.call("GetRun", pb.GetRunRequest(run_id=run_id))).run
    assert (run.state, run.reason) == ("CANCELLED", "by somebody else")


@pytest.mark.parametrize("error", [conflict("never as believed", ""), damaged()], ids=lambda error: error.id)
async def test_what_no_retry_mends_costs_its_run_and_no_other(
    stage: Any, refusing: RefusingStore, error: Exception
) -> None:
    peer = await stage.peer("a")
    bad = await stage.submit(name="bad", round=ONE)
    await peer.offer()

    def refuse(transitions: Sequence[Transition]) -> Exception | None:
        return error if any(each.run_id == bad for each in transitions) else None

    refusing.refuse = refuse
    runs = stage.running.coordinator.runs
    peer_gone = asyncio.create_task(runs.post_surely(PeerGone(run_id=bad, peer_id="a", reason="as told")))
    await asyncio.wait_for(peer_gone, 20)
    assert bad in runs.unreadable
    assert "could not be made or stored" in runs.unreadable[bad]
    # The event, that the run is taken up again, and that it is broken.
    assert refusing.refused <= 3 * (CONFLICTS_MAX + 2)
    good = await stage.submit(name="good", round=ONE)
    assert (await deliver(stage, peer, good)).state == "FINISHED"


async def test_a_peers_row_that_another_writer_has_changed_is_read_anew(
    stage: Any, refusing: RefusingStore
) -> None:
    peer = await stage.peer("a")
    changed = Transition(
        kind="peer.quarantined",
        entity="peer",
        key={"peer_id": "a"},
        before="ACTIVE",
        values={"state": "QUARANTINED", "reason": "by somebody else"},
        reason="by somebody else",
        at=1.0,
        peer_id="a",
    )
    await refusing.commit([changed])
    request = pb.DrainPeerRequest(peer_id="a", reason="asked for")
    drained = (await stage.call("DrainPeer", request)).peer
    assert drained.state == "QUARANTINED"  # which a draining does not lift
    member = stage.running.coordinator.members.get("a")
    assert member is not None
    assert member.connected
    await peer.leave()
