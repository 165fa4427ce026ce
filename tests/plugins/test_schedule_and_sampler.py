"""A schedule and a sampler of somebody else's: buffered rounds whose work outlives them, a draw by what peers did."""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine import invariants
from coordinator.store import SqlStore
from coordinator.submission.checks import check_spec
from muster.errors import ConfigError
from muster.spec.model import RunSpec
from simulator import ProcessFederation
from tests.plugins.quadratics import SOURCE

PEERS, ROUNDS, SIZE = 3, 6, 2

SLOW = (
    SOURCE
    + '''

class Slow(Quadratics):
    """One of its sites lets the others take four steps for each of its own, or waits a second."""

    def train_data(self, site):
        from pathlib import Path

        self.slow, self.seen = site.data["index"] == 0, 0
        self.steps = Path(site.data["steps"])
        return super().train_data(site)

    def loss(self, model, batch):
        import time

        if not self.slow:
            with self.steps.open("a") as file:
                file.write(".")
            return super().loss(model, batch)
        until, self.seen = time.monotonic() + 1, self.seen + 4
        while self.steps.stat().st_size < self.seen and time.monotonic() < until:
            time.sleep(0.005)
        return super().loss(model, batch)
'''
)


def _spec(**tables: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "slow_task:Slow",
            "rounds": ROUNDS,
            "task_options": {"peers": PEERS},
            "train": {"algorithm": "sgd", "lr": 0.02, "steps": 10},
            "aggregation": {"rule": "mean", "faults": 0},
            "round": {"peers_min": PEERS, "deadline_seconds": 60.0},
            "evaluate": {"every": ROUNDS, "on": ["coordinator"]},
            **tables,
        }
    )


async def _play(
    folder: Path, spec: RunSpec, environment: Mapping[str, str], *, kills: bool = False
) -> tuple[Any, SqlStore]:
    """With `kills` the coordinator and a peer are killed on the way."""
    (folder / "slow_task.py").write_text(SLOW)
    async with ProcessFederation(folder / "federation", task_folders=[folder]) as federation:
        await federation.start_coordinator(env=environment)
        steps = folder / "steps"
        steps.touch()
        data = [{"index": index, "steps": str(steps)} for index in range(PEERS)]
        for index in range(PEERS):
            federation.start_peer(f"peer-{index}", data=data[index], env=environment)
        run_id = await federation.submit(spec)
        if kills:
            await federation.progressed(run_id, 2)
            for name in ("coordinator", "peer-1"):
                await federation.stop(name, signal.SIGKILL)
            await federation.start_coordinator(env=environment)
            federation.start_peer("peer-1", data=data[1], env=environment)
        run = [each async for each in federation.watch(run_id)][-1]
        assert (run.state, run.rounds_committed) == ("FINISHED", ROUNDS), run.reason
        (database,) = (folder / "federation").rglob("muster.db")
    return run, await SqlStore.open(f"sqlite:///{database}")


async def test_a_buffered_schedule_folds_stale_updates_by_their_age(
    tmp_path: Path, installed_methods: Mapping[str, str]
) -> None:
    schedule = {"name": "buffered", "options": {"size": SIZE}}
    run, store = await _play(tmp_path, _spec(schedule=schedule), installed_methods, kills=True)
    gaps: Counter[int] = Counter()
    for number in range(1, ROUNDS + 1):
        folded = await store.folded(run.run_id, number)
        assert folded
        for each in folded:
            gap = number - 1 - each.work.base
            gaps[gap] += 1
            assert each.weight == pytest.approx(1.0 / math.sqrt(1.0 + gap) / len(folded))
            assert each.round == each.work.base + 1  # it was asked for in the round of its own base
    assert max(gaps) > 0, "nobody was slow enough to be overtaken"
    events = await store.events(run_id=run.run_id, limit=10_000)
    await store.close()
    assert invariants.check(events) == []
    assert run.metrics["error"] < 0.9  # it began at 1


async def test_a_sampler_goes_by_what_it_has_seen_of_each_peer(
    tmp_path: Path, installed_methods: Mapping[str, str]
) -> None:
    sampling = {"policy": "oort", "count": 2, "options": {"explore": 0.5, "alpha": 50.0}}
    run, store = await _play(tmp_path, _spec(sampling=sampling), installed_methods)
    cohorts = [row.cohort for row in await store.rounds(run.run_id)]
    await store.close()
    asked = Counter(peer for cohort in cohorts for peer in cohort)
    assert set(asked) == {f"peer-{index}" for index in range(PEERS)}  # all were tried
    first = next(number for number, cohort in enumerate(cohorts) if "peer-0" in cohort)
    assert all("peer-0" not in cohort for cohort in cohorts[max(first, 2) + 1 :]), cohorts  # it is too slow


def test_what_the_schedule_cannot_go_with_is_refused_by_its_own_words(
    installed_methods: Mapping[str, str],
) -> None:
    schedule = {"name": "buffered", "options": {"size": SIZE}}
    with pytest.raises(ConfigError, match="only a mean without a pre-rule"):
        check_spec(_spec(schedule=schedule, aggregation={"rule": "median", "faults": 0}))


@pytest.mark.parametrize("feedback", ["ef21", "econtrol", "econtrol:0.1"])
def test_a_schedule_of_several_bases_goes_with_no_feedback_that_sends_differences(
    installed_methods: Mapping[str, str], feedback: str
) -> None:
    compression = {"up": "topk:0.1", "feedback": feedback}
    check_spec(_spec(compression=compression))
    schedule = {"name": "buffered", "options": {"size": SIZE}}
    with pytest.raises(ConfigError, match="count in their order alone") as refused:
        check_spec(_spec(schedule=schedule, compression=compression))
    assert "set compression.feedback" in refused.value.fix
    check_spec(_spec(schedule=schedule, compression={"up": "topk:0.1", "feedback": "ef14"}))


def test_a_schedule_of_several_bases_goes_with_no_clipping_by_the_size_of_a_cohort(
    installed_methods: Mapping[str, str],
) -> None:
    schedule = {"name": "buffered", "options": {"size": SIZE}}
    clipped = {"up": "topk:0.1", "feedback": "dgc:0.9:clip=1.0"}
    check_spec(_spec(compression=clipped))
    with pytest.raises(ConfigError, match="outlive their rounds"):
        check_spec(_spec(schedule=schedule, compression=clipped))
    check_spec(_spec(schedule=schedule, compression={"up": "topk:0.1", "feedback": "dgc:0.9"}))
