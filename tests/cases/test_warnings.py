"""What is no failure of a run is told all the same: once for each cause, to everybody who asks, across restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coordinator.engine.decide import decide, new_run
from coordinator.engine.decision_builder import MORE_WARNINGS, WARNINGS_MAX
from coordinator.engine.state import Decision, ModelReady, ModelVersion, RunState, RunSubmitted, RunWarned
from coordinator.store import SqlStore
from coordinator.submission.checks import build_schedule
from muster.spec.model import RunSpec

SPEC = RunSpec.model_validate({"task": "digits:Digits", "rounds": 3})


def submitted(*warnings: tuple[str, str]) -> Decision:
    event = RunSubmitted(run_id="run", spec=SPEC, spec_toml="", request_id="q", warnings=warnings)
    return new_run(event, "run", 5.0)


def warn(state: RunState, cause: str, reason: str, **more: Any) -> Decision:
    return decide(
        state,
        RunWarned(run_id="run", cause=cause, reason=reason, **more),
        9.0,
        {},
        build_schedule(state.spec),
    )


def told(decision: Decision) -> list[str]:
    return [each.reason for each in decision.transitions if each.kind == "run.warned"]


def test_a_thousand_rounds_write_one_event_for_one_cause() -> None:
    state, events = submitted().state, []
    for number in range(1, 1001):
        decision = warn(state, "evaluate.failed", f"evaluate failed in round {number}", round=number)
        events += told(decision)
        state = decision.state
    assert events == ["evaluate failed in round 1"]
    kept = state.warnings["evaluate.failed"]
    assert (kept.times, kept.first_round, kept.last_round) == (1000, 1, 1000)
    assert kept.reason == "evaluate failed in round 1000"


def test_a_warning_does_not_take_the_place_of_what_the_run_waits_for() -> None:
    decision = warn(submitted().state, "data.old", "the data have changed", peer_id="a")
    assert "initial model" in decision.reason
    assert decision.state.reason == submitted().state.reason


def test_causes_without_end_are_bounded_and_still_counted() -> None:
    state, events = submitted().state, 0
    for number in range(3 * WARNINGS_MAX):
        decision = warn(state, f"cause {number}", "x" * 10_000)
        state, events = decision.state, events + len(told(decision))
    assert len(state.warnings) == events == WARNINGS_MAX + 1
    assert state.warnings[MORE_WARNINGS].times == 2 * WARNINGS_MAX
    assert max(len(each.reason) for each in state.warnings.values()) <= 1000


async def test_warnings_outlive_the_coordinator(database_url: str) -> None:
    """Those of the spec, too; and what was told before a restart is not told again after it."""
    store = await SqlStore.open(database_url)
    first = submitted(("compression.up", "topk loses what it leaves out"))
    assert told(first) == ["topk loses what it leaves out"]
    await store.commit(first.transitions)
    second = warn(first.state, "slow:a", "a is slow", round=1, peer_id="a")
    await store.commit(second.transitions)
    await store.close()

    store = await SqlStore.open(database_url)
    (state,) = await store.load_runs()
    assert state == second.state
    again = warn(state, "slow:a", "a is slow still", round=2, peer_id="a")
    assert told(again) == []
    await store.commit(again.transitions)
    rows = await store.warnings("run")
    assert [(row.cause, row.times) for row in rows] == [("compression.up", 1), ("slow:a", 2)]
    assert rows[-1].reason == "a is slow still"
    assert [event.kind for event in await store.events() if event.kind == "run.warned"] == ["run.warned"] * 2
    await store.close()


async def test_a_running_run_goes_on_with_a_warning(tmp_path: Path) -> None:
    model = ModelVersion(version=0, round=0, digest="0", size_bytes=4, layout_digest="1")
    ready = ModelReady(run_id="run", model=model)
    running = decide(submitted().state, ready, 6.0, {}, build_schedule(SPEC)).state
    decision = warn(running, "few", "few peers")
    assert decision.state.status == "RUNNING"
    assert told(decision) == ["few peers"]
