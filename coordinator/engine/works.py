"""Assignments, and an immutable collection of them that knows at any time what a schedule asks of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from coordinator.engine.sorted_map import SortedMap
from exchange.facts import UpdateFacts
from muster.work import Work


class AssignmentStatus(StrEnum):
    """An assignment's state: from OFFERED to DELIVERED, or one of the ends in which nothing is delivered."""

    OFFERED = "OFFERED"
    ACCEPTED = "ACCEPTED"
    PREPARING = "PREPARING"
    TRAINING = "TRAINING"
    UPLOADING = "UPLOADING"
    DELIVERED = "DELIVERED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    LOST = "LOST"

    @property
    def ended(self) -> bool:
        return self in _ENDED


_ENDED = frozenset(
    {
        AssignmentStatus.DELIVERED,
        AssignmentStatus.REJECTED,
        AssignmentStatus.EXPIRED,
        AssignmentStatus.LOST,
    }
)
_AT_WORK = (AssignmentStatus.TRAINING, AssignmentStatus.UPLOADING)


@dataclass(frozen=True, kw_only=True)
class AssignmentState:
    """One attempt of one peer at one piece of work."""

    assignment_id: str  # "RUN.ROUND.PEER.ATTEMPT"; of an evaluation: "RUN.eVERSION.PEER.1"
    run_id: str
    round: int  # in which it was offered
    peer_id: str
    work: Work
    attempt: int  # 1, 2, ... within the round, for this peer
    status: AssignmentStatus
    reason: str
    offered_at: float
    preparing_at: float | None = None  # since when, or when, its peer loaded its data
    prepared_at: float | None = None  # when it was done with that
    training_at: float | None = None
    uploading_at: float | None = None
    deadline_at: float | None = None  # of one that has outlived its round; of others the round says it
    update: UpdateFacts | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])  # of an evaluation
    examples: int = 0  # of an evaluation
    evaluation: bool = False  # of the version that the work starts from; else of the round
    retry: bool = False  # a failure after which the same peer may be asked again

    @property
    def counts(self) -> bool:
        """Whether it is an update that is there."""
        return self.status is AssignmentStatus.DELIVERED and self.update is not None


class Works(Mapping[str, AssignmentState]):
    """By assignment id, in its order. Each view is kept up to date with every `put`, which costs the same however many
    there are. `cohort` are the peers that are to be asked, sorted."""

    __slots__ = ("_all", "_by_peer", "_views", "cohort")
    _VIEWS = ("live", "delivered", "failed", "preparing", "prepared", "due", "idle", "bases")

    def __init__(self, cohort: tuple[str, ...] = (), works: Iterable[AssignmentState] = ()) -> None:
        self.cohort = cohort
        self._all: SortedMap[str, AssignmentState] = SortedMap()
        self._by_peer: SortedMap[str, tuple[str, ...]] = SortedMap()
        self._views: dict[str, SortedMap[Any, Any]] = {
            **{name: SortedMap() for name in self._VIEWS},
            "idle": SortedMap((peer_id, None) for peer_id in cohort),
        }
        for work in sorted(works, key=lambda each: each.attempt):
            self._put(work)

    def put(self, work: AssignmentState) -> Works:
        made = self._copy()
        made._put(work)
        return made

    def without(self, assignment_id: str) -> Works:
        made = self._copy()
        made._remove(assignment_id)
        return made

    # -- views -------------------------------------------------------------------------------------------

    @property
    def live(self) -> Iterable[str]:
        """Ids of those that have not ended."""
        return self._views["live"]

    @property
    def live_count(self) -> int:
        return len(self._views["live"])

    @property
    def delivered(self) -> tuple[AssignmentState, ...]:
        """The updates that are there, in the order in which they are aggregated: by peer id, whoever came first."""
        return tuple(self._all[assignment_id] for _, assignment_id in self._views["delivered"])

    @property
    def delivered_count(self) -> int:
        return len(self._views["delivered"])

    @property
    def failed(self) -> Iterator[AssignmentState]:
        """Those that were rejected, lost or expired."""
        return (self._all[assignment_id] for assignment_id in self._views["failed"])

    @property
    def preparing(self) -> Iterable[tuple[float, str]]:
        """Since when who prepares, longest first."""
        return self._views["preparing"]

    @property
    def preparing_since(self) -> float | None:
        """Since when the first of those prepares."""
        view = self._views["preparing"]
        return view.first()[0] if view else None

    @property
    def preparing_last(self) -> float | None:
        """Since when the last of those prepares."""
        view = self._views["preparing"]
        return view.last()[0] if view else None

    @property
    def preparing_count(self) -> int:
        return len(self._views["preparing"])

    @property
    def prepared_last(self) -> float | None:
        """When the last of those at work that had to prepare was done with it."""
        view = self._views["prepared"]
        return view.last()[0] if view else None

    @property
    def due_first(self) -> tuple[float, str] | None:
        """The first deadline among those that have one of their own, and whose it is."""
        view = self._views["due"]
        return view.first() if view else None

    @property
    def idle(self) -> Iterable[str]:
        """Of the cohort: whose newest work is neither live nor delivered."""
        return self._views["idle"]

    @property
    def idle_count(self) -> int:
        return len(self._views["idle"])

    @property
    def bases(self) -> Iterable[int]:
        """The versions that live work and updates start from."""
        return self._views["bases"]

    def of_peer(self, peer_id: str) -> tuple[AssignmentState, ...]:
        """In the order of their attempts."""
        return tuple(self._all[each] for each in self._by_peer.get(peer_id, ()))

    def newest(self, peer_id: str) -> AssignmentState | None:
        found = self._by_peer.get(peer_id)
        return self._all[found[-1]] if found else None

    # -- a map -------------------------------------------------------------------------------------------

    def __getitem__(self, assignment_id: str) -> AssignmentState:
        return self._all[assignment_id]

    def __contains__(self, assignment_id: object) -> bool:
        return assignment_id in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"Works({list(self.values())!r})"

    # -- inside ------------------------------------------------------------------------------------------

    def _copy(self) -> Works:
        made = Works.__new__(Works)
        made.cohort, made._all, made._by_peer = self.cohort, self._all, self._by_peer
        made._views = dict(self._views)
        return made

    def _put(self, work: AssignmentState) -> None:
        old = self._all.get(work.assignment_id)
        self._all = self._all.set(work.assignment_id, work)
        if old is None:
            theirs = [*self.of_peer(work.peer_id), work]
            theirs.sort(key=lambda each: (each.round, each.attempt))
            self._by_peer = self._by_peer.set(work.peer_id, tuple(each.assignment_id for each in theirs))
        self._move(old, work)

    def _remove(self, assignment_id: str) -> None:
        old = self._all[assignment_id]
        self._all = self._all.without(assignment_id)
        left = tuple(each for each in self._by_peer[old.peer_id] if each != assignment_id)
        self._by_peer = self._by_peer.set(old.peer_id, left) if left else self._by_peer.without(old.peer_id)
        self._move(old, None)

    def _move(self, old: AssignmentState | None, new: AssignmentState | None) -> None:
        before, after = _keys(old), _keys(new)
        views = self._views
        for name, key in before.items():
            if after.get(name) != key:
                views[name] = views[name].without(key)
        for name, key in after.items():
            if before.get(name) != key:
                views[name] = views[name].set(key, None)
        for each, step in ((old, -1), (new, 1)):
            if each is not None and (each.counts or not each.status.ended):
                left = views["bases"].get(each.work.base, 0) + step
                views["bases"] = (
                    views["bases"].set(each.work.base, left)
                    if left
                    else views["bases"].without(each.work.base)
                )
        for each in (new, old):
            if each is not None:
                self._note_idle(each.peer_id)
                break

    def _note_idle(self, peer_id: str) -> None:
        place = bisect_left(self.cohort, peer_id)
        if self.cohort[place : place + 1] != (peer_id,):
            return
        newest = self.newest(peer_id)
        busy = newest is not None and (not newest.status.ended or newest.status is AssignmentStatus.DELIVERED)
        idle = self._views["idle"]
        self._views["idle"] = idle.without(peer_id) if busy else idle.set(peer_id, None)


def _keys(work: AssignmentState | None) -> dict[str, Any]:
    """Where it stands in each view."""
    if work is None:
        return {}
    name = work.assignment_id
    if work.status is AssignmentStatus.DELIVERED:
        return {"delivered": (work.peer_id, name)} if work.update is not None else {}
    if work.status.ended:
        return {"failed": name}
    keys: dict[str, Any] = {"live": name}
    if work.status is AssignmentStatus.PREPARING and work.preparing_at is not None:
        keys["preparing"] = (work.preparing_at, name)
    if work.status in _AT_WORK and work.prepared_at is not None:
        keys["prepared"] = (work.prepared_at, name)
    if work.deadline_at is not None:
        keys["due"] = (work.deadline_at, name)
    return keys
