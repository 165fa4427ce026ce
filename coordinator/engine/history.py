"""What is known of a peer's work in a run: what samplers go by.

It is counted from the run's assignments, so it is the same after a restart, and of their details it keeps the newest
`WORKS_MAX` of each peer.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coordinator.engine.works import AssignmentState, AssignmentStatus

WORKS_MAX = 8
LOSS = "loss"  # among the metrics of an update


@dataclass(frozen=True, kw_only=True, order=True)
class WorkDone:
    """One work that has ended, however. Times are as the coordinator saw them; None where a step was not taken."""

    round: int
    attempt: int
    role: str
    delivered: bool
    train_seconds: float | None = None
    upload_seconds: float | None = None
    size_bytes: int = 0  # of its update
    loss: float | None = None  # the peer's word


@dataclass(frozen=True, kw_only=True)
class PeerHistory:
    """A peer's past work in a run, as samplers see it."""

    asked: int = 0  # works offered to it, evaluations of versions apart
    delivered: int = 0
    failed: int = 0  # lost, refused or not done in time
    last_round: int = 0  # the newest in which it was asked; 0: it never was
    works: tuple[WorkDone, ...] = ()  # the newest that have ended, oldest first

    @property
    def train_seconds(self) -> float | None:
        """The mean of those works that tell."""
        return _mean([work.train_seconds for work in self.works])

    @property
    def upload_seconds(self) -> float | None:
        return _mean([work.upload_seconds for work in self.works])

    @property
    def bytes_per_second(self) -> float | None:
        """How fast its updates came up."""
        timed = [work for work in self.works if work.delivered and work.upload_seconds]
        seconds = sum(work.upload_seconds or 0.0 for work in timed)
        return sum(work.size_bytes for work in timed) / seconds if seconds else None

    @property
    def losses(self) -> tuple[float, ...]:
        """As reported with its updates, oldest first."""
        return tuple(work.loss for work in self.works if work.loss is not None)

    def asks(self, round: int) -> PeerHistory:
        return replace(self, asked=self.asked + 1, last_round=max(self.last_round, round))

    def ends(self, work: WorkDone) -> PeerHistory:
        works = [*self.works]
        insort(works, work, key=lambda each: (each.round, each.attempt))
        return replace(
            self,
            delivered=self.delivered + work.delivered,
            failed=self.failed + (not work.delivered),
            works=tuple(works[-WORKS_MAX:]),
        )


NO_HISTORY = PeerHistory()


def work_done(assignment: AssignmentState, ended_at: float) -> WorkDone:
    delivered = assignment.status is AssignmentStatus.DELIVERED
    training, uploading = assignment.training_at, assignment.uploading_at
    trained = uploading if uploading is not None else (ended_at if delivered else None)
    update = assignment.update
    return WorkDone(
        round=assignment.round,
        attempt=assignment.attempt,
        role=assignment.work.role,
        delivered=delivered,
        train_seconds=None if training is None or trained is None else max(0.0, trained - training),
        upload_seconds=max(0.0, ended_at - uploading) if delivered and uploading is not None else None,
        size_bytes=0 if update is None else update.size_bytes,
        loss=None if update is None else update.metrics.get(LOSS),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if told else None
