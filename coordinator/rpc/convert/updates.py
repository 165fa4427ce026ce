"""Messages of the update service, from what the coordinator works with."""

from __future__ import annotations

from coordinator.engine.state import AssignmentState
from exchange.facts import UpdateFacts
from protos.v1 import updates_pb2 as pb


def receipt(assignment: AssignmentState, update: UpdateFacts, event_sequence: int) -> pb.Receipt:
    """Of the update that this assignment has delivered."""
    return pb.Receipt(
        assignment_id=assignment.assignment_id,
        run_id=assignment.run_id,
        round=assignment.round,
        digest=update.digest,
        size_bytes=update.size_bytes,
        event_sequence=event_sequence,
    )
