"""The engine's vocabulary: states, events (what may happen), transitions (to record), effects (to carry out).

Everything here is a frozen value. A decision is

    decide(state, event, now, peers) -> Decision(state, transitions, effects, reason)

and the shell commits `transitions` (each one row written and one event row, all in one transaction) before it
carries out `effects`, which are idempotent, so that a restart may issue them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from coordinator.engine.history import NO_HISTORY, PeerHistory
from coordinator.engine.sorted_map import SortedMap
from coordinator.engine.works import (
    AssignmentState as AssignmentState,  # noqa: PLC0414  # part of this vocabulary, and told so to type checkers
)
from coordinator.engine.works import (
    AssignmentStatus as AssignmentStatus,  # noqa: PLC0414  # the same
)
from coordinator.engine.works import Works
from exchange.facts import UpdateFacts
from muster.spec.model import RunSpec


def _empty() -> Mapping[Any, Any]:
    return MappingProxyType({})


class RunStatus(StrEnum):
    """A run's state; see ARCHITECTURE.md for how one follows another."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        return self in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.CANCELLED)


class RoundStatus(StrEnum):
    """A round's state, in the order in which a round passes through them."""

    PLANNED = "PLANNED"
    OPEN = "OPEN"
    AGGREGATING = "AGGREGATING"
    COMMITTED = "COMMITTED"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        return self in (RoundStatus.COMMITTED, RoundStatus.SKIPPED, RoundStatus.FAILED)


class PeerStatus(StrEnum):
    """What the coordinator knows of a peer's being there."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    SUSPECT = "SUSPECT"
    LOST = "LOST"
    DRAINING = "DRAINING"
    QUARANTINED = "QUARANTINED"
    REVOKED = "REVOKED"


class EvaluationStatus(StrEnum):
    """An evaluation's state."""

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"


# -- state -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What a round aggregates, where its schedule has said it."""

    updates: tuple[str, ...]  # assignment ids, of this round or carried on from earlier ones
    weights: tuple[float, ...] | None = (
        None  # of each, as it is: signed, not divided by their sum; None: the spec's
    )
    work_goes_on: bool = False  # the round's work under way outlives it

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Fold | None:
        """None of an empty text: the round has none."""
        if not text:
            return None
        found = json.loads(text)
        weights = found["weights"]
        return cls(
            updates=tuple(found["updates"]),
            weights=None if weights is None else tuple(weights),
            work_goes_on=found["work_goes_on"],
        )


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """A round, with its assignments by id."""

    number: int  # 1, 2, ...; every opened round takes a number, committed or not
    status: RoundStatus
    reason: str
    base_version: int
    cohort: tuple[str, ...]  # peer ids as sampled, sorted
    roles: Mapping[str, str] = field(default_factory=_empty)  # by peer, where it is not the usual one
    needed: int  # updates wanted (before over-selection)
    quorum: int  # updates that make the round complete
    planned_at: float
    opened_at: float | None = None
    deadline_at: float | None = None
    grace_until: float | None = None  # set when the quorum is reached
    fold: Fold | None = None  # None: what is delivered when it closes, and nothing outlives it
    assignments: Works = field(default_factory=Works)

    def __post_init__(self) -> None:
        if self.assignments.cohort is not self.cohort:
            object.__setattr__(self, "assignments", Works(self.cohort, self.assignments.values()))

    @property
    def delivered(self) -> tuple[AssignmentState, ...]:
        """The round's own updates."""
        return self.assignments.delivered

    @property
    def takes_updates(self) -> bool:
        """Whether an update of its work may still be delivered."""
        goes_on = self.fold is not None and self.fold.work_goes_on
        return self.status is RoundStatus.OPEN or (goes_on and self.status is RoundStatus.AGGREGATING)


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A version of the model and the digests that identify it."""

    version: int  # 0 is the initial model; a committed round makes the next one
    round: int
    digest: str
    size_bytes: int
    layout_digest: str


@dataclass(frozen=True, kw_only=True)
class EvaluationState:
    """The evaluation of one model version, wherever it happens. `own` is the coordinator's share of it."""

    version: int
    round: int
    deadline_at: float
    assignments: Works = field(default_factory=Works)
    own_pending: bool = False
    own_metrics: Mapping[str, float] = field(default_factory=_empty)


@dataclass(frozen=True, kw_only=True)
class WarningState:
    """What is no failure of a run and must not be silent, once for each cause however often it happens."""

    cause: str  # short and stable: "evaluate.failed:site-0"
    reason: str  # one sentence, of the newest time
    peer_id: str
    times: int
    first_round: int  # 0: of no round
    last_round: int
    last_at: float


@dataclass(frozen=True, kw_only=True)
class PeerStanding:
    """What went wrong last at a peer in a run, see `coordinator.engine.standings`."""

    peer_id: str
    error_id: str
    cause: str  # in one line, with the cure where one is known
    round: int  # the newest in which it failed; 0: it has delivered since
    in_row: int = 0  # so many rounds in a row, with the same error id
    aside: bool = False
    instance: str = ""  # of the peer's daemon when it failed
    times: int = 0  # how often it was set aside since the run was resumed last


@dataclass(frozen=True, kw_only=True)
class Rest:
    """The pause after a skipped round; `present` peers could have been asked when it began."""

    until: float
    present: int


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A live run: all that its decisions depend on."""

    run_id: str
    spec: RunSpec
    status: RunStatus
    reason: str
    created_at: float
    source_digest: str = ""  # of the task as the coordinator has loaded it
    model: ModelVersion | None = None  # the newest; None until the initial one is made
    rounds: Mapping[int, RoundState] = field(default_factory=_empty)  # those that have not ended
    evaluations: Mapping[int, EvaluationState] = field(
        default_factory=_empty
    )  # those that have not ended, by version
    carried: Works = field(
        default_factory=Works
    )  # of ended rounds: work that goes on, updates that no round has
    models: Mapping[int, ModelVersion] = field(default_factory=_empty)  # those of `versions_in_use`
    counted: Mapping[tuple[str, str], int] = field(
        default_factory=_empty
    )  # by peer and role: the newest round in which it was asked for an update that a version has in it
    history: SortedMap[str, PeerHistory] = field(default_factory=SortedMap)  # of peers that were ever asked
    standings: Mapping[str, PeerStanding] = field(
        default_factory=_empty
    )  # of peers at which something failed
    rest: Rest | None = None
    last_round: int = 0  # the highest number given
    committed: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    warnings: Mapping[str, WarningState] = field(default_factory=_empty)  # by cause


def versions_in_use(
    model: ModelVersion | None,
    rounds: Mapping[int, RoundState],
    evaluations: Mapping[int, EvaluationState],
    carried: Works,
) -> frozenset[int]:
    """What a run still needs: the newest version, those under evaluation, what live work starts from."""
    versions = {*evaluations, *carried.bases}
    for round_ in rounds.values():
        versions.add(round_.base_version)
        versions.update(round_.assignments.bases)
    if model is not None:
        versions.add(model.version)
    return frozenset(versions)


@dataclass(frozen=True, kw_only=True)
class PeerView:
    """What a schedule or sampler may know of a peer."""

    peer_id: str
    status: PeerStatus
    connected: bool
    instance: str = ""  # another one whenever its daemon starts anew; empty if it does not tell
    history: PeerHistory = NO_HISTORY  # in the run; samplers are given it, see `sampling.views`


# -- events ----------------------------------------------------------------------------------------------


# Who causes what happens, as events name it; a peer is "peer:NAME".
ENGINE = "engine"  # it follows from what has happened before, by the rules of the run
COORDINATOR = "coordinator"  # its own work: models, aggregation, admission, who is there
ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Event:
    """What may happen to a run."""

    run_id: str
    actor: str = (
        COORDINATOR  # who causes it, and with it the transitions that are its own; what follows is `ENGINE`'s
    )


@dataclass(frozen=True, kw_only=True)
class RunSubmitted(Event):
    """A run was submitted."""

    spec: RunSpec
    spec_toml: str
    request_id: str
    warnings: tuple[tuple[str, str], ...] = ()  # of the spec: cause and sentence
    actor: str = ADMIN


@dataclass(frozen=True, kw_only=True)
class RunWarned(Event):
    """Something outside the engine has seen what is no failure and must not be silent."""

    cause: str
    reason: str
    round: int = 0
    peer_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelReady(Event):
    """The initial version was made."""

    model: ModelVersion
    source_digest: str = ""  # of the task that has made it


@dataclass(frozen=True, kw_only=True)
class ModelFailed(Event):
    """The initial version could not be made, or the task does not work here."""

    error: str
    what: str = "the initial model could not be made"
    traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class Tick(Event):
    """Time has come, or who is there has changed."""

    actor: str = ENGINE


@dataclass(frozen=True, kw_only=True)
class Restored(Event):
    """The coordinator has started again and read this run from the store."""


@dataclass(frozen=True, kw_only=True)
class AssignmentProgressed(Event):
    """A peer reports a phase of its work."""

    assignment_id: str
    status: AssignmentStatus  # ACCEPTED, PREPARING, TRAINING or UPLOADING
    warnings: tuple[str, ...] = ()  # of what the task gave as metrics of its training


@dataclass(frozen=True, kw_only=True)
class AssignmentFailed(Event):
    """An attempt failed on the peer."""

    assignment_id: str
    error_id: str
    message: str
    traceback: str
    retry: bool


@dataclass(frozen=True, kw_only=True)
class AssignmentEvaluated(Event):
    """A peer has evaluated a version."""

    assignment_id: str
    metrics: Mapping[str, float]
    examples: int  # 0: the task does not say
    warnings: tuple[str, ...] = ()  # of what the task gave and is no metric
    source_digest: str = ""


@dataclass(frozen=True, kw_only=True)
class UpdateAdmitted(Event):
    """An update has passed admission and is in the blob store."""

    assignment_id: str
    update: UpdateFacts


@dataclass(frozen=True, kw_only=True)
class UpdateRefused(Event):
    """Admission has rejected an update."""

    assignment_id: str
    error_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class PeerGone(Event):
    """A peer is lost, quarantined, revoked or draining without the assignment."""

    peer_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """How the rule treated one update."""

    assignment_id: str
    weight: float
    score: float
    selected: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Aggregated(Event):
    """A round was aggregated into a new version."""

    round: int
    model: ModelVersion
    treatments: tuple[Treatment, ...]
    seconds: float
    states: Mapping[str, str] = field(
        default_factory=_empty
    )  # what the server keeps beside the version: name -> blob digest
    how: str = ""  # in the rule's own words
    warnings: tuple[tuple[str, str], ...] = ()  # cause and sentence


@dataclass(frozen=True, kw_only=True)
class AggregationSkipped(Event):
    """The rule refuses: its bound on n and f does not hold, or the result is not finite."""

    round: int
    reason_given: str


@dataclass(frozen=True, kw_only=True)
class OwnEvaluated(Event):
    """The coordinator has evaluated a version."""

    version: int
    metrics: Mapping[str, float]  # empty: the task has nothing to evaluate on here
    warnings: tuple[str, ...] = ()  # of what the task gave and is no metric
    error: str = ""
    traceback: str = ""  # of the error
    source_digest: str = ""


@dataclass(frozen=True, kw_only=True)
class RunBroken(Event):
    """A decision of this run failed, or nothing could store it: a defect, which costs the run."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class OwnPreparing(Event):
    """The coordinator loads its own data before it evaluates a version, or (`done`) has loaded them."""

    version: int
    done: bool


@dataclass(frozen=True, kw_only=True)
class PauseRequested(Event):
    """An admin pauses the run."""

    actor: str = ADMIN


@dataclass(frozen=True, kw_only=True)
class ResumeRequested(Event):
    """An admin resumes the run."""

    actor: str = ADMIN


@dataclass(frozen=True, kw_only=True)
class StopRequested(Event):
    """An admin stops the run."""

    reason: str
    actor: str = ADMIN


class AlreadySo(str):
    """Why an event changes nothing and is accepted all the same: what it asks for is so already."""

    __slots__ = ()


# -- what a decision gives -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One row to write and the event that tells of it.

    `entity` is the table: "run", "round", "assignment", "model", "evaluation", "optimizer_state", "warning" or "peer";
    `key` its primary key as column values; `values` the other columns to set. `before` is the state that
    the row must be in (None: the row is new; "": the row has no state, write it in any case); a mismatch
    means another writer, and the whole transaction is refused. `data` goes into the event beside the
    reason. An empty `kind` writes the row and no event: the change follows from an event of the same
    decision (a run's counters from its round's). One that `removes` deletes the row.
    """

    kind: str  # "round.opened"; also the name of the failpoints around it
    entity: str
    key: Mapping[str, Any]
    before: str | None
    values: Mapping[str, Any]
    reason: str
    at: float
    run_id: str = ""
    round: int = 0
    assignment_id: str = ""
    peer_id: str = ""
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    actor: str = ENGINE  # who caused it
    removes: bool = False


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Work to carry out after the commit; idempotent."""

    run_id: str


@dataclass(frozen=True, kw_only=True)
class PrepareModel(Effect):
    """Make the run's initial version."""


@dataclass(frozen=True, kw_only=True)
class Offer(Effect):
    """Send an assignment to its peer."""

    assignment: AssignmentState
    deadline_at: float


@dataclass(frozen=True, kw_only=True)
class Cancel(Effect):
    """Tell a peer that an assignment is over."""

    peer_id: str
    assignment_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Aggregate(Effect):
    """Make the next version of these updates."""

    round: int
    base: ModelVersion  # the newest version: the one that the result moves
    updates: tuple[AssignmentState, ...]  # sorted by peer id
    weights: tuple[float, ...] | None = None  # the schedule's


@dataclass(frozen=True, kw_only=True)
class EvaluateOwn(Effect):
    """Evaluate a version on the coordinator's own data."""

    model: ModelVersion


@dataclass(frozen=True, kw_only=True)
class WakeAt(Effect):
    """Send a `Tick` at this time at the latest."""

    at: float


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What follows from an event."""

    state: RunState
    transitions: tuple[Transition, ...] = ()
    effects: tuple[Effect, ...] = ()
    reason: str = ""
    accepted: bool = True  # False: the event did not fit, nothing has changed, and the reason says why
