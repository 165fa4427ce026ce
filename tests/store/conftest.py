from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine.state import Transition
from coordinator.store import MemoryStore, SqlStore, Store
from muster.spec.model import RunSpec
from muster.work import Work

SPEC = RunSpec(task="examples.digits:Digits", rounds=3)


class Script:
    """Writes transitions as the engine and membership do, with little to say for each."""

    run_id = "r1"
    spec = SPEC

    def row(
        self, kind: str, entity: str, key: Mapping[str, Any], before: str | None, /, **values: Any
    ) -> Transition:
        told = {name: key.get(name, values.get(name)) for name in ("run_id", "assignment_id", "peer_id")}
        return Transition(
            kind=kind,
            entity=entity,
            key=key,
            before=before,
            values=values,
            reason=f"{kind}, as told",
            at=100.0,
            round=key.get("number", values.get("round", 0)),
            data={"state": values["state"]} if "state" in values else {},
            **{name: value or "" for name, value in told.items()},
        )

    def peer(self, peer_id: str, state: str = "ACTIVE", **values: Any) -> Transition:
        return self.row("peer.enrolled", "peer", {"peer_id": peer_id}, None, state=state, **values)

    def run(self, run_id: str = run_id, state: str = "RUNNING", **values: Any) -> Transition:
        row = {
            "name": "digits",
            "task": SPEC.task,
            "state": state,
            "reason": "submitted",
            "spec_json": SPEC.canonical_json(),
            "spec_digest": SPEC.digest,
            "spec_toml": "rounds = 3",
            "request_id": f"request of {run_id}",
            "created_at": 10.0,
        }
        return self.row("run.submitted", "run", {"run_id": run_id}, None, **row | values)

    def round(self, number: int, state: str = "OPEN", **values: Any) -> Transition:
        row = {
            "state": state,
            "reason": "planned",
            "base_version": number - 1,
            "cohort_json": json.dumps(["a", "b"]),
            "needed": 2,
            "quorum": 2,
            "planned_at": 20.0,
        }
        key = {"run_id": self.run_id, "number": number}
        return self.row("round.planned", "round", key, None, **row | values)

    def assignment(self, round: int, peer_id: str, state: str = "OFFERED", **values: Any) -> Transition:
        row = {
            "run_id": self.run_id,
            "round": round,
            "peer_id": peer_id,
            "attempt": 1,
            "state": state,
            "reason": "offered",
            "offered_at": 21.0,
        } | values
        work = Work(role=row.pop("role", "train"), base=row.pop("base_version", round - 1))
        if work.role == "train" and state == "DELIVERED":
            row.setdefault("digest", f"update of {peer_id} for {round}")
            row.setdefault("norm", 1.0)
        row |= {"work_json": work.to_json(), "evaluation": work.role == "evaluate"}
        of = f"e{work.base}" if row["evaluation"] else round
        key = {"assignment_id": f"{self.run_id}.{of}.{peer_id}.{row['attempt']}"}
        return self.row("assignment.offered", "assignment", key, None, **row)

    def progress(
        self, round: int, peer_id: str, before: str, state: str, attempt: int = 1, **values: Any
    ) -> Transition:
        key = {"assignment_id": f"{self.run_id}.{round}.{peer_id}.{attempt}"}
        return self.row(f"assignment.{state.lower()}", "assignment", key, before, state=state, **values)

    def model(self, version: int, **values: Any) -> Transition:
        row = {
            "round": version,
            "digest": f"model{version}",
            "size_bytes": 1000 + version,
            "layout_digest": "layout",
            "created_at": 30.0 + version,
        }
        key = {"run_id": self.run_id, "version": version}
        return self.row("model.created", "model", key, None, **row | values)

    def evaluation(self, version: int, state: str = "RUNNING", **values: Any) -> Transition:
        key = {"run_id": self.run_id, "version": version}
        row = {"round": version, "state": state, "deadline_at": 60.0}
        return self.row("evaluation.started", "evaluation", key, None, **row | values)


@pytest.fixture
def script() -> Script:
    return Script()


def _url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'muster.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return _url(request.param, request, tmp_path)


@pytest.fixture
async def sql_store(database_url: str) -> AsyncIterator[SqlStore]:
    """For what is asked of a database only."""
    opened = await SqlStore.open(database_url)
    yield opened
    await opened.close()


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Every store there is, for its contract."""
    if request.param == "memory":
        yield MemoryStore()
        return
    opened = await SqlStore.open(_url(request.param, request, tmp_path))
    yield opened
    await opened.close()
