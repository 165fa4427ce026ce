"""SIGKILL around a commit, in a process of its own: the whole of it is there afterwards, or nothing."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest

from coordinator.store import SqlStore

CHILD = """
import asyncio, json, sys
from coordinator.engine.state import Transition
from coordinator.store import SqlStore, Transfer

async def main():
    store = await SqlStore.open(sys.argv[1])
    transitions = [Transition(**row) for row in json.loads(sys.argv[2])]
    await store.commit(transitions, [Transfer(run_id="r1", round=1, peer_id="a", direction="up", bytes=7)])
    await store.close()
    print("committed")

asyncio.run(main())
"""

# The first and the last kind of the batch below; every transition is written by then, or none is.
POINTS = ("round.planned.before", "assignment.offered.before@2", "round.planned.after")


def _commit_in_child(url: str, transitions: list[Any], point: str) -> tuple[int, str]:
    rows = json.dumps([asdict(transition) for transition in transitions])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, url, rows],
        env=os.environ | {"MUSTER_FAILPOINT": point},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def _round(script: Any) -> list[Any]:
    key = {"run_id": "r1", "number": 1}
    return [
        script.round(1, "PLANNED"),
        script.row("round.opened", "round", key, "PLANNED", state="OPEN"),
        script.assignment(1, "a"),
        script.assignment(1, "b"),
    ]


async def _seen(url: str) -> tuple[list[str], list[str], int, int]:
    store = await SqlStore.open(url)
    try:
        (run,) = await store.load_runs()
        rounds = [str(round_.status) for round_ in run.rounds.values()]
        assignments = [key for round_ in run.rounds.values() for key in round_.assignments]
        row = await store.run("r1")
        assert row is not None
        return rounds, assignments, row.bytes_up, len(await store.events())
    finally:
        await store.close()


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_around_the_commit_leaves_all_or_nothing(
    database_url: str, script: Any, point: str
) -> None:
    store = await SqlStore.open(database_url)
    await store.commit([script.peer("a"), script.peer("b"), script.run()])
    await store.close()

    name, _, nth = point.partition("@")
    code, told = _commit_in_child(database_url, _round(script), f"{name}:kill@{nth or 1}")

    assert (code, told) == (-signal.SIGKILL, "")
    nothing = ([], [], 0, 3)
    everything = (["OPEN"], ["r1.1.a.1", "r1.1.b.1"], 7, 7)
    if name.endswith(".after"):
        assert await _seen(database_url) == everything
        return
    assert await _seen(database_url) == nothing
    store = await SqlStore.open(database_url)  # and what was lost can be done again
    await store.commit(_round(script))
    await store.close()
    assert (await _seen(database_url))[:2] == everything[:2]
