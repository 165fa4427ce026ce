"""Which assignment an id names, and what a peer is to be working on."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.engine.assignments import find, live_offers
from coordinator.engine.state import AssignmentState, AssignmentStatus, RunState
from coordinator.runs import Runs
from coordinator.store import AssignmentRow, Store
from exchange.facts import UpdateFacts


class Assignments:
    """Those of live rounds and evaluations from memory, all others from the store."""

    def __init__(self, *, runs: Runs, store: Store, is_connected: Callable[[str], bool]) -> None:
        self._runs = runs
        self._store = store
        self._is_connected = is_connected

    def live(self, peer_id: str) -> list[tuple[RunState, AssignmentState, float]]:
        """What this peer is to be working on, each with its run and deadline."""
        return [
            (run, offer.assignment, offer.deadline_at)
            for run in self._runs.values()
            for offer in live_offers(run, peer_id)
        ]

    def is_live(self, assignment_id: str) -> bool:
        """Whether it is one that has not ended."""
        found = self._in_memory(assignment_id)
        return found is not None and not found[1].status.ended

    def is_at_work(self, peer_id: str) -> bool:
        """Whether it is connected, or is to be working on something. A name alone is free and says nothing."""
        return self._is_connected(peer_id) or bool(self.live(peer_id))

    async def find(self, assignment_id: str) -> tuple[RunState | None, AssignmentState | None]:
        """An assignment and, if its round is still live, its run."""
        found = self._in_memory(assignment_id)
        if found is not None:
            return found
        row = await self._store.assignment(assignment_id)
        return None, None if row is None else _of_the_record(row)

    def _in_memory(self, assignment_id: str) -> tuple[RunState, AssignmentState] | None:
        run = self._runs.get(assignment_id.split(".", 1)[0])
        assignment = None if run is None else find(run, assignment_id)
        return None if run is None or assignment is None else (run, assignment)


def _of_the_record(row: AssignmentRow) -> AssignmentState:
    """An assignment of a round that is over."""
    update = None
    if row.digest:
        update = UpdateFacts(
            digest=row.digest,
            size_bytes=row.size_bytes,
            dense_bytes=row.dense_bytes,
            examples=row.examples,
            norm=row.norm or 0.0,
            source_digest=row.source_digest,
            metrics=row.metrics,
        )
    return AssignmentState(
        assignment_id=row.assignment_id,
        run_id=row.run_id,
        round=row.round,
        peer_id=row.peer_id,
        work=row.work,
        evaluation=row.evaluation,
        attempt=row.attempt,
        status=AssignmentStatus(row.state),
        reason=row.reason,
        offered_at=row.offered_at,
        update=update,
    )
