"""What the store answers: frozen values, one class for each kind of row. Times are seconds since the
epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from coordinator.engine.state import Fold
from muster.work import Work


class Row(Protocol):
    """A row of a table, by column, as a database gives it or as it is held in memory."""

    def __getitem__(self, name: str, /) -> Any: ...

    def __contains__(self, name: object, /) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Fence:
    """A coordinator's claim on a store. Whoever takes the next one shuts out all that hold an older one."""

    epoch: int


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Bytes really sent between a peer and the coordinator; they add up. `direction` is "up" or "down"."""

    run_id: str
    round: int
    peer_id: str
    direction: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PeerRecord:
    """A peer as membership left it."""

    peer_id: str
    state: str
    reason: str
    epoch: int
    device: str
    muster_version: str
    secret_hash: str
    instance: str  # of its daemon, as it was enrolled last
    enrolled_at: float | None
    seen_at: float | None


@dataclass(frozen=True, kw_only=True)
class PeerRow(PeerRecord):
    """A peer with what it has done; only updates count, evaluations do not."""

    source_digest: str  # of the task's source code that it worked with last
    updates_delivered: int
    updates_rejected: int
    updates_failed: int  # attempts that ended with an error of the peer's
    updates_missed: int  # not there when their time was over, or lost with their peer
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run as lists and views show it."""

    run_id: str
    name: str
    task: str
    state: str
    reason: str
    spec_json: str
    spec_digest: str
    spec_toml: str
    request_id: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    last_round: int
    committed: int
    skipped: int
    skipped_in_row: int
    model_version: int | None
    source_digest: str  # of the task's source code at the coordinator
    model_digest: str  # empty until there is a model
    bytes_up: int
    bytes_down: int
    bytes_up_dense: int  # what the delivered updates would have been uncompressed
    metrics: Mapping[str, float]  # of the newest evaluation that has any


@dataclass(frozen=True, kw_only=True)
class WarningRow:
    """What must not be silent of a run: one row for each cause, with the newest sentence."""

    run_id: str
    cause: str
    reason: str
    peer_id: str
    times: int
    first_round: int  # 0: of no round
    last_round: int
    last_at: float


@dataclass(frozen=True, kw_only=True)
class AssignmentRow:
    """An assignment as lists and views show it."""

    assignment_id: str
    run_id: str
    round: int
    peer_id: str
    work: Work
    evaluation: bool  # of a version; else of a round
    attempt: int
    state: str
    reason: str
    offered_at: float
    ended_at: float | None
    retry: bool
    digest: str
    size_bytes: int
    dense_bytes: int
    examples: int
    norm: float | None
    metrics: Mapping[str, float]
    error_id: str
    traceback: str
    weight: float | None
    score: float | None
    selected: bool
    treatment: str
    source_digest: str


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """A round as lists and views show it."""

    run_id: str
    number: int
    state: str
    reason: str
    base_version: int
    base_digest: str
    cohort: tuple[str, ...]
    needed: int
    quorum: int
    planned_at: float
    opened_at: float | None
    deadline_at: float | None
    grace_until: float | None
    ended_at: float | None
    model_version: int | None
    model_digest: str  # of the version that the round made; empty if it made none
    aggregate_seconds: float | None
    bytes_up: int
    bytes_down: int
    metrics: Mapping[str, float]
    fold: Fold | None  # what it aggregates, where its schedule has said it
    assignments: tuple[AssignmentRow, ...] = ()  # filled by `Store.round` only; by peer, then attempt


@dataclass(frozen=True, kw_only=True)
class RoundTotals:
    """Of a round's assignments."""

    bytes_up_dense: int
    delivered: int  # updates


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """A version as lists and views show it."""

    run_id: str
    version: int
    round: int
    digest: str
    size_bytes: int
    layout_digest: str
    created_at: float
    blob_gone: bool  # the version's file was given up; the row stays for the record
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """An event of the log."""

    sequence: int
    at: float
    kind: str
    run_id: str
    round: int
    assignment_id: str
    peer_id: str
    reason: str
    data_json: str
    data: Mapping[str, Any]
    actor: str = (
        ""  # who caused it: "engine", "coordinator", "admin", "peer:NAME"; empty where it was not recorded
    )
