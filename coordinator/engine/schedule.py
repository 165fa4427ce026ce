"""What happens next: the interface between the engine, which keeps the books, and a schedule with a plan.

After every event the engine asks the run's schedule, carries out the actions it answers with, and asks
again, until the answer ends in `Wait` or `Finish`. A schedule is a pure function of the run's state, the
time and who is there: it keeps nothing of its own, so that a restart loses nothing.

Several rounds may be live at once, each with its own base version; work carries the base version it
starts from. An asynchronous schedule is one that opens a round for each peer; a buffered one closes a
round after so many deliveries and opens the next before; a coded one offers a round's work to several
peers. One round at a time may be closed (aggregating), since versions are a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from coordinator.engine.state import PeerView, RunState
from methods.kinds import SCHEDULES
from muster import plugins
from muster.spec.model import RunSpec
from muster.work import Work

Refuse = Callable[[int, int], str | None]
"""Of an aggregation rule: one sentence if it cannot aggregate n updates of a cohort of so many ("krum needs
n > 2f + 2: n is 4, f is 1"); f may be a share of the cohort."""


@dataclass(frozen=True, kw_only=True)
class OpenRound:
    """The next round, numbered by the engine. Not carried out while the run is paused."""

    cohort: tuple[str, ...]
    needed: int
    quorum: int
    base_version: int
    deadline_at: float
    reason: str
    roles: Mapping[str, str] = field(default_factory=dict[str, str])  # by peer, where it is not the usual one
    defenceless: str = ""  # why a faulty update would pass, where nobody has asked for that


@dataclass(frozen=True, kw_only=True)
class OfferWork:
    """The work for each of these peers, the next attempt of each."""

    round: int
    peer_ids: tuple[str, ...]
    work: Work
    reason: str


@dataclass(frozen=True, kw_only=True)
class StartGrace:
    """The quorum is reached; the rest may deliver until then."""

    round: int
    until: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExpireWork:
    """Ends assignments of a round that are not delivered."""

    round: int
    assignment_ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class CloseRound:
    """Aggregates what the round's peers have delivered, or the updates of `weights`.

    With `weights` (by assignment, of this round or carried on from earlier ones; signed, and not divided by their sum)
    updates that are not among them wait for a later round, as do those that come meanwhile if `work_goes_on`: then the
    round's work under way outlives it, with its own deadline, in `RunState.carried`. Otherwise a commit expires it.
    """

    round: int
    reason: str
    weights: Mapping[str, float] | None = None
    work_goes_on: bool = False


@dataclass(frozen=True, kw_only=True)
class SkipRound:
    """The round ends without a new version."""

    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing to do before the next event, or before `until` (None: only an event can change anything)."""

    until: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Every round that was wanted is committed."""

    reason: str


Action = OpenRound | OfferWork | StartGrace | ExpireWork | CloseRound | SkipRound | Wait | Finish


class Schedule(Protocol):
    """What happens next in a run, on each event: a pure function of the run's state, the time and who is there.

    `several_bases`: whether a version may be made of updates that start from different versions. It then goes with no
    feedback that sends differences.
    """

    several_bases: ClassVar[bool] = False

    def next(self, state: RunState, now: float, peers: Mapping[str, PeerView]) -> Sequence[Action]:
        """At least one action; `Wait` and `Finish` only at the end."""
        ...


class ScheduleClass(Protocol):
    """What the entry points in "muster.schedules" name: a class that takes `spec`, `refuse` and its options.

    Its options, those of [schedule.options], are the other fields of a frozen dataclass: the class itself, or its
    `Options` (`methods.options`).
    """

    def __call__(self, *, spec: RunSpec, refuse: Refuse, **options: Any) -> Schedule: ...


def defenceless(spec: RunSpec, cohort: int) -> str:
    """Why one faulty update spoils a round that asks so many peers, where the spec leaves f to Muster; else ""."""
    if spec.aggregation.faults is not None or cohort < 2 or spec.faults_of(cohort):
        return ""
    return (
        f"f is 0 with {cohort} peers asked, so one faulty update can spoil the model: among as few as make a quorum no "
        "rule can tell it; let three or more take part (round.peers_min, sampling.count, round.quorum), or set "
        "aggregation.faults = 0 to say that it is meant"
    )


def build(spec: RunSpec, refuse: Refuse) -> Schedule:
    """The schedule that a spec names. `refuse` is the bound of the spec's aggregation rule. Raises `ConfigError` for an
    unknown name."""
    table = spec.schedule
    made: Schedule = plugins.make(SCHEDULES, table.name, table.options, spec=spec, refuse=refuse)
    return made
