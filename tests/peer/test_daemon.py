"""The daemon against a scripted coordinator: every step of an assignment, and a restart between any two."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from muster.errors import (
    AuthenticationError,
    NotAllowedError,
    StateError,
    TaskError,
    UnreachableError,
    UpdateRejected,
)
from muster.files.digests import digest_bytes
from muster.spec.model import RunSpec
from protos.v1 import membership_pb2 as pb
from protos.v1 import updates_pb2
from protos.v1.models_pb2 import GroupFile, PlanModelResponse

ACCEPTED, PREPARING = pb.ASSIGNMENT_PHASE_ACCEPTED, pb.ASSIGNMENT_PHASE_PREPARING
TRAINING = pb.ASSIGNMENT_PHASE_TRAINING
UPLOADING, EVALUATED = pb.ASSIGNMENT_PHASE_UPLOADING, pb.ASSIGNMENT_PHASE_EVALUATED
FAILED = pb.ASSIGNMENT_PHASE_FAILED
FIRST = "r.1.ada.1"


async def forgotten(bench: Any, task: Any, *, updates: int) -> None:
    """The daemon, stopped, holds nothing and has left no file but the state, which counts so many updates."""
    await bench.stop(task)
    with bench.store() as store:
        assert store.held() == []
        newest = store._db.execute("SELECT coalesce(max(round), 0) FROM state").fetchone()[0]
        kept = [path.read_text() for path in store.settle("r", newest).values()]
    assert kept == ([str(updates)] if updates else [])
    assert [path.read_text() for path in (bench.folder / "ada/files").iterdir()] == kept


async def delivered(bench: Any, number: int = 1) -> bytes:
    assignment_id = f"r.{number}.ada.1"
    await bench.coordinator.until(lambda: assignment_id in bench.coordinator.committed)
    return bytes(bench.coordinator.bodies[assignment_id])


async def idle(bench: Any, session: Any) -> None:
    """Until the daemon has dealt with all that was sent: it handles in order, and refuses this by a
    report."""
    session.send(offer=bench.offer(99, assignment_id="probe", role="probe"))
    await bench.coordinator.told("probe", FAILED)


async def committed(bench: Any, count: int) -> None:
    """Until so many updates have counted."""
    await bench.reached("peer.committed", count)


async def test_a_training_assignment_from_offer_to_receipt(bench: Any) -> None:
    task = bench.start()
    session = await bench.coordinator.session()
    assert list(session.hello.held_assignment_ids) == []
    session.send(offer=bench.offer())
    assert await delivered(bench) == b"update 1 after 0"
    phases = [report.phase for report in bench.coordinator.reports]
    assert phases == [ACCEPTED, PREPARING, TRAINING, UPLOADING]
    (order,) = bench.worker.orders
    assert order["site_name"] == "ada"
    assert order["seed"] == 1
    assert order["base_digest"] == digest_bytes(bench.model)
    assert 50.0 < order["timeout_seconds"] < 60.0
    session.send(offer=bench.offer(2))
    assert await delivered(bench, 2) == b"update 2 after 1"  # the state of the first round counts now
    assert bench.coordinator.fetches == 1  # both rounds start from the same version
    await bench.stop(task)


async def test_an_evaluation_is_reported_until_it_is_heard(bench: Any) -> None:
    bench.coordinator.acknowledges = False
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer(assignment_id="r.e0.ada.1", role="evaluate"))
    report = await bench.coordinator.told("r.e0.ada.1", EVALUATED)
    assert (dict(report.metrics), report.example_count) == ({"accuracy": 0.5}, 7)
    await bench.stop(task)
    bench.coordinator.reports.clear()
    bench.coordinator.acknowledges = True
    task = bench.start()
    session = await bench.coordinator.session()
    assert list(session.hello.held_assignment_ids) == ["r.e0.ada.1"]
    await bench.coordinator.told("r.e0.ada.1", EVALUATED)
    await idle(bench, session)
    assert len(bench.worker.orders) == 1  # it was not evaluated again
    await forgotten(bench, task, updates=0)


@pytest.mark.parametrize(
    "name", ["peer.accepted", "peer.fetched", "peer.trained", "peer.delivered", "peer.committed"]
)
async def test_a_restart_goes_on_after_every_step(bench: Any, name: str) -> None:
    """The daemon stops dead where it is told to; the next one does only what was not durable."""
    bench.dies_at = name
    task = bench.start()
    (await bench.coordinator.session()).send(offer=bench.offer())
    await bench.reached(name)
    await bench.stop(task)
    bench.dies_at = ""
    before = len(bench.worker.orders)
    task = bench.start()
    session = await bench.coordinator.session()
    assert list(session.hello.held_assignment_ids) == ([] if name == "peer.committed" else [FIRST])
    session.send(offer=bench.offer(2))
    assert await delivered(bench, 2) == b"update 2 after 1"
    await committed(bench, 2)
    assert await delivered(bench) == b"update 1 after 0"
    assert before == (0 if name in ("peer.accepted", "peer.fetched") else 1)
    assert len(bench.worker.orders) == 2
    await forgotten(bench, task, updates=2)


async def test_a_lost_receipt_is_asked_for_again(bench: Any) -> None:
    bench.coordinator.receipts_to_lose = 2
    task = bench.start()
    (await bench.coordinator.session()).send(offer=bench.offer())
    await committed(bench, 1)
    assert len(bench.worker.orders) == 1
    await forgotten(bench, task, updates=1)


@pytest.mark.parametrize(("stateless", "role"), [(True, "train"), (False, "sgd")])
async def test_one_update_is_sent_while_the_next_is_trained_where_no_state_is_handed_on(
    bench: Any, stateless: bool, role: str
) -> None:
    """Nothing at all, or nothing from one role to the other."""
    bench.worker.stateless = stateless
    bench.coordinator.answers.clear()
    bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await delivered(bench)
    session.send(offer=bench.offer(2, role=role, counted_round=0))
    assert await delivered(bench, 2) == b"update 2 after 0"
    assert "peer.committed" not in bench._reached
    bench.coordinator.answers.set()
    await committed(bench, 2)


async def test_the_next_round_waits_for_the_receipt_of_this_one(bench: Any) -> None:
    """Its offer may overtake the receipt, and without the receipt it is not known which state counts."""
    bench.coordinator.answers.clear()
    bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await delivered(bench)
    session.send(offer=bench.offer(2))
    await idle(bench, session)
    assert len(bench.worker.orders) == 1
    bench.coordinator.answers.set()
    assert await delivered(bench, 2) == b"update 2 after 1"


async def test_a_cancelled_update_that_was_delivered_counts(bench: Any) -> None:
    """The receipt was lost with the daemon, and the coordinator no longer waits for anything."""
    bench.coordinator.answers.clear()
    task = bench.start()
    (await bench.coordinator.session()).send(offer=bench.offer())
    await delivered(bench)
    await bench.stop(task)
    with bench.store() as store:
        assert store.settle("r", 1) == {}
    bench.coordinator.begin_error = UnreachableError("transport.unreachable", "not now")
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(cancel=pb.Cancel(assignment_id=FIRST, reason="the coordinator no longer waits for it"))
    await committed(bench, 1)
    await forgotten(bench, task, updates=1)


async def test_a_cancelled_update_that_was_not_delivered_is_dropped(bench: Any) -> None:
    bench.coordinator.begin_error = UnreachableError("transport.unreachable", "not now")
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await bench.coordinator.told(FIRST, UPLOADING)
    session.send(cancel=pb.Cancel(assignment_id=FIRST, reason="the round is over"))
    await idle(bench, session)
    bench.coordinator.begin_error = None
    session.send(offer=bench.offer(2))
    assert await delivered(bench, 2) == b"update 2 after 0"
    await committed(bench, 1)
    await forgotten(bench, task, updates=1)


async def test_a_cancel_stops_the_work_and_drops_it(bench: Any) -> None:
    bench.worker.gate.clear()
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await bench.coordinator.told(FIRST, TRAINING)
    await bench.worker.started.wait()
    session.send(cancel=pb.Cancel(assignment_id=FIRST, reason="the round is over"))
    await idle(bench, session)
    bench.worker.gate.set()
    session.send(offer=bench.offer(2))
    assert await delivered(bench, 2) == b"update 2 after 0"  # the worker is free again, the state untouched
    assert FIRST not in bench.coordinator.committed
    await committed(bench, 1)
    await forgotten(bench, task, updates=1)


async def test_an_update_that_comes_too_late_rolls_the_state_back(bench: Any) -> None:
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await committed(bench, 1)
    bench.coordinator.refusals["r.2.ada.1"] = StateError("update.stale_round", "too late")
    session.send(offer=bench.offer(2))
    report = await bench.coordinator.told("r.2.ada.1", FAILED)
    assert (report.failure.error_id, report.failure.retry) == ("update.stale_round", False)
    session.send(cancel=pb.Cancel(assignment_id="r.2.ada.1", reason="too late"))
    await idle(bench, session)
    session.send(offer=bench.offer(3, counted_round=1))
    assert await delivered(bench, 3) == b"update 3 after 1"
    await committed(bench, 2)
    await forgotten(bench, task, updates=2)


async def test_an_evaluation_is_given_the_state_that_counts_and_leaves_it(bench: Any) -> None:
    bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await committed(bench, 1)
    session.send(offer=bench.offer(2))
    await committed(bench, 2)
    session.send(offer=bench.offer(assignment_id="r.e1.ada.1", role="evaluate", counted_round=1))
    await bench.coordinator.told("r.e1.ada.1", EVALUATED)
    given = bench.worker.orders[-1]["state"]
    assert Path(given["residual"]).read_text() == "1"
    session.send(offer=bench.offer(3, counted_round=2))
    assert await delivered(bench, 3) == b"update 3 after 2"


async def test_a_groups_file_is_fetched_with_the_base_and_no_other(bench: Any) -> None:
    base, group = digest_bytes(bench.model), b"8 bytes."
    bench.coordinator.models[digest_bytes(group)] = group
    files = [
        GroupFile(name=name, digest=digest_bytes(group), size_bytes=len(group))
        for name in ("control", "unasked")
    ]
    bench.coordinator.plans[base] = PlanModelResponse(groups=files)
    bench.start()
    session = await bench.coordinator.session()
    offer = bench.offer(2)
    offer.work.groups.append("control")
    session.send(offer=offer)
    await delivered(bench, 2)
    received = bench.worker.orders[-1]["received"]
    assert list(received) == ["control"]
    assert Path(received["control"]).name == digest_bytes(group)
    assert bench.coordinator.fetches == 2


async def test_a_groups_file_that_is_gone_is_not_taken_for_zeros(bench: Any) -> None:
    file = GroupFile(name="control", digest=digest_bytes(b"gone"))
    bench.coordinator.plans[digest_bytes(bench.model)] = PlanModelResponse(groups=[file])
    bench.start()
    session = await bench.coordinator.session()
    offer = bench.offer(2)
    offer.work.groups.append("control")
    session.send(offer=offer)
    report = await bench.coordinator.told("r.2.ada.1", FAILED)
    assert report.failure.error_id == "model.not_found"
    assert bench.worker.orders == []


async def test_a_rejected_update_leaves_no_state(bench: Any) -> None:
    bench.coordinator.refusals[FIRST] = UpdateRejected("update.not_finite", "NaN in chunk 3")
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    report = await bench.coordinator.told(FIRST, FAILED)
    assert report.failure.error_id == "update.not_finite"
    session.send(offer=bench.offer(2))
    assert await delivered(bench, 2) == b"update 2 after 0"
    await bench.stop(task)


async def test_an_offer_made_twice_is_worked_on_once_with_the_later_deadline(bench: Any) -> None:
    bench.worker.gate.clear()
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await bench.worker.started.wait()
    session.send(offer=bench.offer(deadline_seconds=500.0))
    await idle(bench, session)
    await bench.stop(task)
    assert len(bench.worker.orders) == 1
    with bench.store() as store:
        (held,) = store.held()
        assert held.deadline_at - asyncio.get_running_loop().time() > 0
    bench.worker.gate.set()
    task = bench.start()
    await delivered(bench)
    assert bench.worker.orders[1]["timeout_seconds"] > 400.0
    await bench.stop(task)


async def test_a_task_that_the_policy_does_not_allow(bench: Any) -> None:
    task = bench.start()
    session = await bench.coordinator.session()
    spec = RunSpec.model_validate({"task": "evil.task:Miner", "rounds": 1})
    session.send(offer=bench.offer(spec_json=spec.canonical_json()))
    report = await bench.coordinator.told(FIRST, FAILED)
    assert (report.failure.error_id, report.failure.retry) == ("peer.task_not_allowed", False)
    assert str(bench.folder / "policy.toml") in report.failure.message
    assert bench.worker.orders == []
    await idle(bench, session)
    await forgotten(bench, task, updates=0)


@pytest.mark.parametrize(
    ("changes", "error_id"),
    [
        ({"role": "gossip"}, "peer.unknown_role"),
        ({"spec_json": '{"task": "toy_task:Toy"}'}, "peer.bad_spec"),
        ({"base_digest": "../../etc/passwd"}, "blob.digest_malformed"),
        ({"base_digest": "0" * 64}, "model.not_found"),
    ],
)
async def test_an_offer_that_makes_no_sense(bench: Any, changes: dict[str, Any], error_id: str) -> None:
    bench.start()
    (await bench.coordinator.session()).send(offer=bench.offer(**changes))
    report = await bench.coordinator.told(FIRST, FAILED)
    assert (report.failure.error_id, report.failure.retry) == (error_id, False)


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (TaskError("worker.failed", "ValueError", traceback="File x, line 1"), False),
        (TaskError("worker.crashed", "SIGKILL", signal="SIGKILL"), True),
        (TaskError("worker.crashed", "exit", exit_status=3), False),
        (
            TaskError("worker.timeout", "hung", traceback="in loop"),
            True,
        ),  # time was left: the machine's doing
        (ZeroDivisionError("a defect"), False),
    ],
)
async def test_a_failed_job_is_reported_and_costs_one_assignment(
    bench: Any, error: Exception, retry: bool
) -> None:
    bench.worker.errors.append(error)
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    report = await bench.coordinator.told(FIRST, FAILED)
    assert report.failure.retry is retry
    if isinstance(error, TaskError):
        assert report.failure.error_id == error.id
        assert report.failure.traceback == error.fields.get("traceback", "")
    else:
        assert report.failure.error_id == "peer.defect"
        assert "ZeroDivisionError" in report.failure.traceback
    session.send(offer=bench.offer(2))
    assert await delivered(bench, 2) == b"update 2 after 0"
    await committed(bench, 1)
    await idle(bench, session)
    await forgotten(bench, task, updates=1)


async def test_training_goes_on_while_the_line_is_down(bench: Any) -> None:
    bench.worker.gate.clear()
    bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await bench.worker.started.wait()
    await bench.unserve()
    bench.worker.gate.set()
    await bench.reached("peer.trained")
    await bench.serve()
    assert await delivered(bench) == b"update 1 after 0"
    assert len(bench.worker.orders) == 1


async def test_a_run_that_has_ended_is_forgotten(bench: Any) -> None:
    bench.worker.gate.set()
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await committed(bench, 1)
    bench.worker.gate.clear()
    bench.worker.started.clear()
    session.send(offer=bench.offer(2))
    await bench.worker.started.wait()
    session.send(run_ended=pb.RunEnded(run_id="r"))
    await idle(bench, session)
    await forgotten(bench, task, updates=0)
    with bench.store() as store:
        assert store.settle("r", 1) == {}
    assert not any((bench.folder / "ada/blobs").rglob("*" + digest_bytes(bench.model)[:8] + "*"))


async def test_state_of_runs_is_named_in_the_hello(bench: Any) -> None:
    task = bench.start()
    (await bench.coordinator.session()).send(offer=bench.offer())
    await committed(bench, 1)
    await bench.stop(task)
    bench.start()
    session = await bench.coordinator.session()
    assert list(session.hello.held_run_ids) == ["r"]


async def test_heartbeats_flow_while_a_job_runs(bench: Any) -> None:
    bench.coordinator.heartbeat_seconds = 0.01
    bench.worker.gate.clear()
    bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await bench.worker.started.wait()
    before = bench.coordinator.heartbeats
    await bench.coordinator.until(lambda: bench.coordinator.heartbeats >= before + 5)


async def test_a_silent_coordinator_is_left_and_found_again(bench: Any) -> None:
    bench.coordinator.heartbeat_seconds = 0.02
    bench.coordinator.acknowledges = False
    bench.start()
    await bench.coordinator.session()
    await bench.coordinator.session()
    assert len(bench.coordinator.enrolments) >= 2


async def test_a_session_that_ends_is_opened_again(bench: Any) -> None:
    bench.start()
    first = await bench.coordinator.session()
    first.send(closing=pb.Closing(reason="the coordinator is stopping", reconnect=True))
    await bench.coordinator.session()
    secrets = {enrolment.secret for enrolment in bench.coordinator.enrolments}
    assert len(secrets) == 1


async def test_being_sent_away_ends_the_daemon(bench: Any) -> None:
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(closing=pb.Closing(reason="removed by the admin", reconnect=False))
    async with asyncio.timeout(20):
        with pytest.raises(NotAllowedError, match="removed by the admin") as caught:
            await task
    assert caught.value.id == "peer.sent_away"


async def test_a_name_that_is_taken_ends_the_daemon(bench: Any) -> None:
    bench.coordinator.secrets["ada"] = "another's"
    async with asyncio.timeout(20):
        with pytest.raises(AuthenticationError):
            await bench.start()


async def test_a_second_daemon_of_the_same_name_is_refused(bench: Any) -> None:
    bench.start()
    await bench.coordinator.session()
    async with asyncio.timeout(20):
        with pytest.raises(StateError) as caught:
            await bench.start()
    assert caught.value.id == "peer.in_use"


async def test_stopping_says_goodbye(bench: Any) -> None:
    task = bench.start()
    await bench.coordinator.session()
    await bench.stop(task)
    assert bench.coordinator.goodbyes == ["the peer is stopping"]


async def test_two_runs_share_one_worker_in_order(bench: Any) -> None:
    bench.worker.gate.clear()
    bench.start()
    session = await bench.coordinator.session()
    for run in ("r", "s", "t"):
        session.send(offer=bench.offer(assignment_id=f"{run}.1", run_id=run))
    await bench.worker.started.wait()
    await idle(bench, session)
    assert [order["run_id"] for order in bench.worker.orders] == ["r"]
    bench.worker.gate.set()
    await bench.coordinator.until(lambda: len(bench.coordinator.committed) == 3)
    assert [order["run_id"] for order in bench.worker.orders] == ["r", "s", "t"]
    assert bench.coordinator.fetches == 1


async def test_a_receipt_in_answer_to_begin_is_enough(bench: Any) -> None:
    bench.coordinator.committed[FIRST] = updates_pb2.Receipt(assignment_id=FIRST)
    task = bench.start()
    (await bench.coordinator.session()).send(offer=bench.offer())
    await committed(bench, 1)
    assert bytes(bench.coordinator.bodies[FIRST]) == b""
    await bench.stop(task)


async def test_loading_goes_on_when_its_assignment_is_cancelled_and_the_next_one_finds_it_done(
    bench: Any,
) -> None:
    bench.worker.prepares.clear()
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await bench.worker.preparing.wait()
    session.send(cancel=pb.Cancel(assignment_id=FIRST, reason="the round has closed"))
    session.send(offer=bench.offer(2))
    await bench.coordinator.told("r.2.ada.1", PREPARING)
    bench.worker.prepares.set()
    assert await delivered(bench, 2) == b"update 2 after 0"
    assert bench.worker.preparations == 1
    await bench.stop(task)


async def test_loading_ends_with_its_run(bench: Any) -> None:
    bench.worker.prepares.clear()
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await bench.worker.preparing.wait()
    session.send(run_ended=pb.RunEnded(run_id="r"))
    await bench.worker.stopped.wait()
    await idle(bench, session)
    await bench.stop(task)


async def test_what_preparing_takes_is_not_taken_from_the_deadline(bench: Any) -> None:
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer(deadline_seconds=0.5))
    await delivered(bench)
    assert (
        50.0 < bench.worker.orders[0]["timeout_seconds"] <= 58.0
    )  # of the spec's 60, from when it was prepared
    await bench.stop(task)


async def test_a_worker_that_does_not_prepare_in_its_time_is_told_by_name(bench: Any) -> None:
    bench.worker.preparation_errors.append(
        TaskError("worker.timeout", "it was killed", stack="in train_data")
    )
    task = bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    report = await bench.coordinator.told(FIRST, FAILED)
    assert (report.failure.error_id, report.failure.retry) == ("task.not_prepared", False)
    assert "raise [round] prepare_seconds" in report.failure.message
    await bench.stop(task)


async def test_an_update_that_was_offered_before_the_receipt_of_another_starts_after_it(bench: Any) -> None:
    bench.coordinator.answers.clear()
    bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    session.send(offer=bench.offer(2, counted_round=0))  # the coordinator has not admitted the first yet
    await delivered(bench)
    bench.coordinator.answers.set()
    await committed(bench, 1)
    assert await delivered(bench, 2) == b"update 2 after 1"
