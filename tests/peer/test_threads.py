"""Peers that share a machine share its cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muster.runtime import cores
from muster.runtime.cores import Slots
from peer.work.orders import DrawOrder, TrainOrder
from peer.work.threads import RUNS_MAX, Threads


@pytest.fixture
def slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a machine with 12 cores, on which one peer sits."""
    monkeypatch.setattr(cores, "usable_cores", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    own = Slots(tmp_path / "runtime").take()
    yield own
    own.release()


def order(round: int, run_id: str = "r") -> TrainOrder:
    return TrainOrder(
        run_id=run_id, task="t:T", task_folders=(), options={}, site_name="a", site_data={}, site_seed=0, device="cpu",
        base="b", seed=1, assignment_id="x", round=round, base_version=0, base_digest="d", train={}, codec="identity",
        feedback="none", counted_round=0, update="u", state={}, staged="s",
    )  # fmt: skip


def drawing() -> DrawOrder:
    return DrawOrder(
        run_id="r", task="t:T", task_folders=(), options={}, site_name="a", site_data={}, site_seed=0, device="cpu",
        base="b", seed=1,
    )  # fmt: skip


def test_neighbours_count_from_the_next_round_on(slots: Slots, tmp_path: Path) -> None:
    threads = Threads(threads=None, slots=slots)
    assert threads.of(order(1)) == 12
    others = [Slots(tmp_path / "runtime").take() for _ in range(2)]
    assert threads.of(order(1)) == 12  # another attempt gives the same bits
    assert threads.of(order(1, "another run")) == 4
    assert threads.of(drawing()) == 4
    assert threads.of(order(2)) == 4
    for other in others:
        other.release()
    assert (threads.of(order(2)), threads.of(order(3))) == (4, 12)


def test_a_peers_own_devices_share_too(slots: Slots) -> None:
    threads = Threads(threads=None, slots=slots)
    threads.workers = 4
    assert threads.of(order(1)) == 3


def test_what_is_said_counts(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Threads(threads=None, slots=slots).of(order(1)) == 5
    assert Threads(threads=7, slots=slots).of(order(1)) == 7


def test_what_is_remembered_is_bounded(slots: Slots) -> None:
    threads = Threads(threads=None, slots=slots)
    for number in range(2 * RUNS_MAX):
        threads.of(order(1, f"run-{number}"))
    assert len(threads._settled) == RUNS_MAX
