"""The coordinator is wired in one place: no part is given the whole, and subscribers hear of commits in one order."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest

import coordinator
from coordinator.engine.state import PauseRequested, Transition
from coordinator.events import Committed, Events, Notice, RunLeft
from muster.errors import AuthenticationError
from protos.v1 import admin_pb2
from protos.v1.membership_pb2 import Credentials

FOLDER = Path(str(coordinator.__path__[0]))


def importers(module: str) -> set[str]:
    """Files of the coordinator that import a module, or something of it."""
    found: set[str] = set()
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{each.name}" for each in node.names]
            elif isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            if any(name == module or name.startswith(f"{module}.") for name in names):
                found.add(path.relative_to(FOLDER).as_posix())
    return found


def test_nobody_but_who_starts_it_knows_the_whole_coordinator() -> None:
    assert importers("coordinator.service") == {"server.py", "wiring/wire.py"}
    assert importers("coordinator.wiring.layers") == {"wiring/wire.py", "wiring/services.py"}


def test_messages_of_the_services_stay_at_the_edge() -> None:
    for service in ("admin_pb2", "membership_pb2", "models_pb2", "updates_pb2"):
        inside = {name for name in importers(f"protos.v1.{service}") if not name.startswith("rpc/")}
        assert not inside, f"{service} is known to {inside}"
    # What transfer writes before a body and cuts it into is the same everywhere.
    tensors = {name for name in importers("protos.v1.tensors_pb2") if not name.startswith("rpc/")}
    assert tensors == {"repairs.py", "intake/intake.py", "intake/spool_quota.py"}


def transition(kind: str, assignment_id: str = "") -> Transition:
    return Transition(
        kind=kind,
        entity="assignment",
        key={},
        before=None,
        values={},
        reason="",
        at=0.0,
        assignment_id=assignment_id,
    )


def test_subscribers_hear_in_the_order_of_their_attachment_and_one_that_fails_costs_no_other() -> None:
    events, heard = Events(), list[tuple[str, Notice]]()

    def broken(notice: Notice) -> None:
        heard.append(("broken", notice))
        raise ZeroDivisionError("a defect")

    events.attach(lambda notice: heard.append(("first", notice)), broken)
    events.attach(lambda notice: heard.append(("last", notice)))
    told = [Committed(reason="one"), RunLeft(run_id="run", ended=True)]
    for notice in told:
        events.publish(notice)
    assert heard == [(name, notice) for notice in told for name in ("first", "broken", "last")]


def test_a_commit_knows_the_event_of_an_assignment() -> None:
    transitions = [
        transition("assignment.delivered", "r.1.a.1"),
        transition(""),
        transition("assignment.delivered", "r.1.b.1"),
    ]
    committed = Committed(transitions=transitions, sequences=[7, 0, 8])
    assert committed.sequence("assignment.delivered", "r.1.b.1") == 8
    assert committed.sequence("assignment.lost", "r.1.b.1") is None


async def test_every_subscriber_hears_each_decision_once_it_is_durable(stage: Any) -> None:
    run_id = await stage.submit()
    await stage.until(run_id, "run.started")
    runs, store, heard = stage.running.coordinator.runs, stage.store, list[Committed]()
    runs._events.attach(lambda notice: heard.append(notice) if isinstance(notice, Committed) else None)
    committed = await runs.post(PauseRequested(run_id=run_id))
    assert heard == [committed]
    assert committed.accepted and committed.run is not None and committed.run.status == "PAUSED"
    events = await store.events(run_id=run_id)
    assert [each.sequence for each in events if each.kind == "run.paused"] == [committed.sequences[0]]
    again = await stage.call("PauseRun", admin_pb2.PauseRunRequest(run_id=run_id))
    assert again.run.state == "PAUSED"
    assert heard[1:] and heard[-1].accepted and not heard[-1].transitions


async def test_two_who_enrol_under_one_name_at_once_do_not_share_it(stage: Any) -> None:
    peers = [await stage.peer("settled")]
    for secret in ("the secret of one who comes", "the secret of another one"):
        made = type(peers[0])(stage.channel(), "contested", stage.folder, secret)
        assert made.credentials == Credentials(peer_id="contested", secret=secret)
        peers.append(made)
    got = await asyncio.gather(peers[1].enrol(), peers[2].enrol(), return_exceptions=True)
    refused = [error for error in got if error is not None]
    assert len(refused) == 1 and isinstance(refused[0], AuthenticationError)
    winner = peers[1 + got.index(None)]
    await winner.connect()
    with pytest.raises(AuthenticationError):
        await peers[2 - got.index(None)].enrol()
