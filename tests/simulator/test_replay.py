"""A round aggregated once more from what the coordinator has kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muster.errors import ConfigError, NotFoundError, StateError
from muster.spec.model import RunSpec
from simulator.local import start_local

ROOT = Path(__file__).parents[2]


def spec(**tables: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "examples.digits:Digits",
            "rounds": 3,
            "seed": 1,
            "train": {"lr": 0.1, "epochs": 1},
            "evaluate": {"every": 0},
            "round": {"peers_min": 4, "quorum": 1.0},
            **tables,
        }
    )


@pytest.mark.timeout(180)
async def test_the_same_rule_makes_the_same_model_and_another_is_compared(tmp_path: Path) -> None:
    liar = {3: {"name": "sign-flip", "options": {"scale": 10}}}
    everything = {
        "aggregation": {
            "rule": "centered-clipping",
            "pre": ["bucketing:2"],
            "faults": 0,
            "options": {"tau": 1.0},
        },
        "server": {"optimizer": "momentum"},
        "compression": {"up": "topk:0.2", "feedback": "ef21", "down": "int8"},
    }
    async with start_local(
        tmp_path,
        peers=4,
        allow=["examples.digits:*"],
        task_folders=[ROOT],
        attacks=liar,
        coordinator={"updates_keep_rounds": 3},
    ) as federation:
        run = await federation.run_to_end(spec(**everything))
        assert run.state == "FINISHED", run.reason
        coordinator = federation._running.coordinator
        replay = coordinator.replays.replay
        same = await replay(run.run_id, 3, {})
        assert same.reproduced
        assert same.comparison.distance == 0
        assert same.comparison.cosine == pytest.approx(1)
        krum = await replay(run.run_id, 3, {"rule": "median", "pre": ["arc"], "faults": 1})
        assert not krum.reproduced
        assert krum.comparison.distance > 0
        assert "median of 4 updates" in krum.result.reason
        row = await coordinator.store.round(run.run_id, 3)
        assert row is not None
        assert "updates clipped to 1 around the last result" in row.reason
        assert {treated.assignment_id for treated in krum.result.treatments} == {
            each.assignment_id for each in row.assignments if each.work.role == "train"
        }
        left = [path for path in (tmp_path / "coordinator").rglob("temporary/*") if path.is_file()]
        assert left == [], "a replay left files behind"
        for number, changes, error, sentence in (
            (9, {}, NotFoundError, "has no round 9"),
            (3, {"rule": "krumm"}, ConfigError, "did you mean 'krum'"),
            (3, {"rule": "krum", "pre": [], "faults": 1}, StateError, "krum needs n > 2f \\+ 2"),
            (3, {"rule": "fltrust", "pre": []}, ConfigError, "say which in aggregation.trusted_peer"),
        ):
            with pytest.raises(error, match=sentence):
                await replay(run.run_id, number, changes)
        one = await replay(run.run_id, 2, {"rule": "multi-krum", "options": {"m": 1}})
        assert one.table.pre == ()  # those of the run stood before its own rule
        assert sum(treated.selected for treated in one.result.treatments) == 1
        kept = await coordinator.store.optimizer_states(run.run_id, 2)
        coordinator.blobs.remove(kept["rule/center"])
        with pytest.raises(StateError, match="the server's state before it are kept no longer") as caught:
            await replay(run.run_id, 3, {})
        assert caught.value.id == "replay.pruned"
        assert "updates_keep_rounds" in caught.value.fix


@pytest.mark.timeout(180)
async def test_a_trusted_peer_is_always_asked_and_judges_the_others(tmp_path: Path) -> None:
    liars = {number: {"name": "sign-flip", "options": {"scale": 10}} for number in (1, 2, 3)}
    table = {
        "rounds": 6,
        "train": {"lr": 0.1, "momentum": 0.9, "epochs": 2},
        "sampling": {"fraction": 0.6},
        "aggregation": {"rule": "fltrust", "faults": 2, "trusted_peer": "peer-0"},
        "evaluate": {"every": 6},
    }
    async with start_local(
        tmp_path, peers=5, allow=["examples.digits:*"], task_folders=[ROOT], attacks=liars
    ) as federation:
        run = await federation.run_to_end(spec(**table))
        assert run.state == "FINISHED", run.reason
        coordinator = federation._running.coordinator
        replay = coordinator.replays.replay
        rounds = await coordinator.store.rounds(run.run_id)
        assert (await replay(run.run_id, 6, {})).reproduced
        plain = await replay(run.run_id, 6, {"rule": "median", "faults": 1})
        assert plain.table.trusted_peer is None
        other = await replay(run.run_id, 6, {"rule": "nna", "faults": 1})
        assert other.table.trusted_peer == "peer-0"
    assert all("peer-0" in each.cohort and len(each.cohort) == 4 for each in rounds)
    assert run.metrics["accuracy"] > 0.5  # most of those asked lie
