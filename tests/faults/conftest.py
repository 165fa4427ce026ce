"""Real processes to be killed, and what an undisturbed run of the same seed computes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.engine import invariants
from muster.spec.model import RunSpec
from simulator.processes import ProcessFederation

ROOT = Path(__file__).parents[2]
PEERS = 3
RUN_SECONDS_MAX = 240


def digits_spec(rounds: int, **tables: Any) -> RunSpec:
    """Every peer takes part in every round, so that one seed has one outcome whoever is killed."""
    return RunSpec.model_validate(
        {
            "task": "examples.digits:Digits",
            "rounds": rounds,
            "seed": 11,
            "task_options": {"model": "mlp"},
            "train": {"lr": 0.1, "worker_momentum": 0.5, "steps": 4},
            "compression": {"up": "topk:0.1", "feedback": "ef14"},
            "server": {"optimizer": "momentum", "lr": 0.5},
            "aggregation": {"rule": "trimmed-mean", "pre": ["arc"], "faults": 1},
            "round": {"peers_min": PEERS, "quorum": 1.0, "deadline_seconds": 120, "attempts_max": 20},
            **tables,
        }
    )


@pytest.fixture
def helpers() -> Any:
    """This file's functions; test folders are no packages, so they cannot be imported."""
    return SimpleNamespace(
        digits_spec=digits_spec, start_peer=start_peer, sound=sound, undisturbed=undisturbed, PEERS=PEERS
    )


@pytest.fixture
async def federation(tmp_path: Path) -> AsyncIterator[ProcessFederation]:
    settings = {"heartbeat_seconds": 0.5}
    async with ProcessFederation(tmp_path, task_folders=[ROOT], coordinator=settings) as made:
        await made.start_coordinator()
        for index in range(PEERS):
            start_peer(made, index)
        yield made


def start_peer(federation: ProcessFederation, index: int) -> None:
    federation.start_peer(f"peer-{index}", data={"index": index, "count": PEERS})


async def undisturbed(federation: ProcessFederation, spec: RunSpec) -> str:
    run = await asyncio.wait_for(federation.run_to_end(spec), RUN_SECONDS_MAX)
    assert run.state == "FINISHED", run.reason
    return str(run.model_digest)


async def sound(federation: ProcessFederation) -> None:
    """The event log of everything that happened keeps every promise."""
    violations = invariants.check([invariants_row(event) for event in await federation.events()])
    assert violations == []


def invariants_row(event: Any) -> Any:
    return SimpleNamespace(
        sequence=event.sequence,
        at=event.at,
        kind=event.kind,
        run_id=event.run_id,
        round=event.round,
        assignment_id=event.assignment_id,
        peer_id=event.peer_id,
        data=json.loads(event.data_json),
    )
