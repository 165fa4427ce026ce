from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from coordinator.store import SqlStore, Store, blobs, load
from muster.errors import NotFoundError, StateError


@pytest.fixture
async def filled(store: Store, script: Any) -> Store:
    """Four committed rounds, the fifth open, the third version still under evaluation."""
    await store.commit([script.peer("a"), script.peer("b"), script.run(last_round=5, model_version=4)])
    rows = [script.model(version) for version in range(5)]
    for number in range(1, 5):
        rows += [
            script.round(number, "COMMITTED"),
            script.assignment(number, "a", "DELIVERED", digest=f"u{number}"),
            script.row("", "optimizer_state", _moment(number), "", digest=f"s{number}"),
        ]
    rows += [
        script.round(5, base_version=4),
        script.assignment(5, "a", "DELIVERED", digest="u5", base_version=4),
        script.assignment(5, "b", "TRAINING", base_version=2),
        script.evaluation(1),
        script.evaluation(3, "FINISHED"),
    ]
    await store.commit(rows)
    return store


def _moment(version: int) -> dict[str, Any]:
    return {"run_id": "r1", "version": version, "name": "m"}


ALL = (
    {f"model{version}" for version in range(5)}
    | {f"u{n}" for n in range(1, 6)}
    | {f"s{n}" for n in range(1, 5)}
)


async def test_what_rows_name_is_live(filled: Store) -> None:
    assert await filled.live_blobs() == ALL


async def test_only_what_nothing_asks_for_is_unneeded(filled: Store) -> None:
    gone = await filled.unneeded_blobs(updates_keep_rounds=2, models_keep=1)
    # Live work starts from version 2, and version 1 is being evaluated; a replay of two rounds starts from 2 or 3.
    assert gone == {"model0", "u1", "u2", "u3", "s1"}
    # What goes with version 2 is what an update against it is decoded with.
    assert await filled.unneeded_blobs(updates_keep_rounds=0, models_keep=None) == {
        "u1", "u2", "u3", "u4", "s1", "s3",
    }  # fmt: skip
    assert await filled.unneeded_blobs(updates_keep_rounds=9, models_keep=9) == set()
    assert await filled.live_blobs() == ALL  # to ask is not to remove


async def test_an_update_that_waits_for_a_later_round_is_kept_with_its_base(
    filled: Store, script: Any
) -> None:
    waits = script.assignment(1, "b", "DELIVERED", digest="waits", carried=True)
    folded = script.assignment(2, "b", "DELIVERED", digest="folded", folded_in=4)
    await filled.commit([waits, folded])
    gone = await filled.unneeded_blobs(updates_keep_rounds=2, models_keep=1)
    assert gone == {"u1", "u2", "u3", "s1"}


async def test_the_newest_version_is_always_kept(filled: Store) -> None:
    assert "model4" not in await filled.unneeded_blobs(updates_keep_rounds=0, models_keep=0)


async def test_what_is_given_up_is_told_no_more(filled: Store) -> None:
    gone = await filled.unneeded_blobs(updates_keep_rounds=2, models_keep=1)
    await filled.forget_blobs(gone)
    assert await filled.live_blobs() == ALL - gone
    assert await filled.unneeded_blobs(updates_keep_rounds=2, models_keep=1) == set()
    model = await filled.model("r1", version=0)
    assert model is not None  # the record stays
    await filled.forget_blobs([])


async def test_one_blob_of_two_rows_is_kept_for_the_one_that_needs_it(filled: Store, script: Any) -> None:
    await filled.commit([script.round(6, "COMMITTED"), script.model(6, digest="model0")])
    gone = await filled.unneeded_blobs(updates_keep_rounds=0, models_keep=1)
    assert "model0" not in gone
    assert "model3" in gone


async def test_an_ended_run_needs_no_optimizer(filled: Store, script: Any) -> None:
    await filled.commit([script.row("run.finished", "run", {"run_id": "r1"}, "RUNNING", state="FINISHED")])
    assert "s4" in await filled.unneeded_blobs(updates_keep_rounds=9, models_keep=9)


async def test_what_is_asked_after_each_round_does_not_grow_with_history(tmp_path: Path) -> None:
    store = await SqlStore.open(f"sqlite:///{tmp_path / 'muster.db'}")

    def plans(connection: Connection) -> list[str]:
        asked: list[tuple[str, Any]] = []

        def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            asked.append((statement, parameters))

        event.listen(connection, "before_cursor_execute", listen)
        blobs.live(connection)
        blobs.unneeded(connection, updates_keep_rounds=1, models_keep=2)
        load.load_runs(connection)
        event.remove(connection, "before_cursor_execute", listen)
        steps: list[str] = []
        for statement, parameters in asked:
            steps += connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).scalars(
                "detail"
            )
        return steps

    steps = await store._database.read(plans)
    await store.close()
    scans = {step for step in steps if step.startswith("SCAN")}
    held = {
        f"SCAN {table} USING INDEX ix_{table}_blob" for table in ("assignments", "models", "optimizer_states")
    }
    carried = "SCAN assignments USING INDEX ix_assignments_carried"  # of which there are few at any time
    assert scans == held | {"SCAN runs", carried}
    assert len(steps) > 20


async def test_old_runs_that_have_ended_keep_their_last_version_only(filled: Store, script: Any) -> None:
    ends = {"run_id": "r1"}
    await filled.commit(
        [
            script.row("run.finished", "run", ends, "RUNNING", state="FINISHED", ended_at=9.0),
            script.row("", "round", {**ends, "number": 5}, "OPEN", state="FAILED"),
            script.progress(5, "b", "TRAINING", "EXPIRED"),
            script.row("", "evaluation", {**ends, "version": 1}, "RUNNING", state="FINISHED"),
        ]
    )
    everything = {"updates_keep_rounds": 9, "models_keep": 9}
    newest = await filled.unneeded_blobs(**everything, ended_runs_keep=1)
    oldest = await filled.unneeded_blobs(**everything, ended_runs_keep=0)
    assert {"model2", "u4"}.isdisjoint(newest)
    assert {"model0", "u4", "u5", "s3"} <= oldest
    assert "model4" not in oldest


async def test_a_removed_run_leaves_an_event_and_no_row_or_blob(filled: Store, script: Any) -> None:
    with pytest.raises(StateError, match="muster run stop r1"):
        await filled.remove_run("r1", 1.0, "asked for")
    with pytest.raises(NotFoundError):
        await filled.remove_run("r9", 1.0, "asked for")
    await filled.commit([script.row("run.finished", "run", {"run_id": "r1"}, "RUNNING", state="FINISHED")])
    other = {"run_id": "r2", "version": 4}
    same = {"round": 4, "digest": "model4", "size_bytes": 1, "layout_digest": "l", "created_at": 1.0}
    await filled.commit(
        [script.run("r2", model_version=4), script.row("model.created", "model", other, None, **same)]
    )
    gone = await filled.remove_run("r1", 1.0, "asked for")
    assert gone == ALL - {"model4"}  # the other run names the same bytes
    assert await filled.run("r1") is None
    assert await filled.rounds("r1") == await filled.models("r1") == await filled.events(run_id="r1") == []
    assert [event.kind for event in await filled.recent_events(limit=1)] == ["run.removed"]
    assert await filled.live_blobs() == {"model4"}


async def test_what_an_old_base_of_an_open_round_is_decoded_with_stays(store: Store, script: Any) -> None:
    """Round 2 is open from version 1 and has an update; later rounds have made versions up to 4."""
    await store.commit([script.peer("a"), script.peer("b"), script.run(last_round=5, model_version=4)])
    factors = [
        script.row(
            "",
            "optimizer_state",
            {"run_id": "r1", "version": version, "name": "up/factor"},
            "",
            digest=f"f{version}",
        )
        for version in range(1, 5)
    ]
    delivered = script.assignment(2, "a", "DELIVERED", digest="u2", base_version=1)
    rounds = [script.round(2, "OPEN", base_version=1), *(script.round(n, "COMMITTED") for n in (3, 4, 5))]
    await store.commit([*(script.model(version) for version in range(5)), *factors, *rounds, delivered])
    gone = await store.unneeded_blobs(updates_keep_rounds=1, models_keep=20)
    assert {"f1", "f2"} & gone == {"f2"}
