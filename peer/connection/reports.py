"""The words that a peer has for what becomes of an assignment, as messages of the wire contract."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from muster.errors import InternalError, MusterError, TaskError
from muster.task.tracebacks import own_frame
from muster.texts import DESCRIPTION_CHARS_MAX, many_lines, one_line
from peer.work.orders import Evaluated
from protos.v1 import membership_pb2 as pb

TRACEBACK_CHARS_MAX = 32 << 10  # the end of one says most
MESSAGE_CHARS_MAX = 4 << 10


def phase(
    assignment_id: str, phase: pb.AssignmentPhase.ValueType, warnings: Sequence[str] = ()
) -> pb.AssignmentReport:
    return pb.AssignmentReport(assignment_id=assignment_id, phase=phase, warnings=warnings)


def evaluated(assignment_id: str, found: Evaluated) -> pb.AssignmentReport:
    return pb.AssignmentReport(
        assignment_id=assignment_id,
        phase=pb.ASSIGNMENT_PHASE_EVALUATED,
        metrics=found.metrics,
        example_count=found.examples,
        source_digest=found.source_digest,
        warnings=found.warnings,
    )


def failed(assignment_id: str, error: MusterError, *, retry: bool) -> pb.AssignmentReport:
    trace = error.fields.get("traceback", "")
    place = own_frame(trace)
    parts = [
        error.message,
        f"at {place}" if place and place not in f"{error.message} {error.cause}" else "",
        error.cause and f"cause: {error.cause}",
        error.fix and f"fix: {error.fix}",
    ]
    return pb.AssignmentReport(
        assignment_id=assignment_id,
        phase=pb.ASSIGNMENT_PHASE_FAILED,
        failure=pb.Failure(
            error_id=one_line(error.id, DESCRIPTION_CHARS_MAX),
            message=many_lines("; ".join(part for part in parts if part), MESSAGE_CHARS_MAX),
            traceback=many_lines(trace, TRACEBACK_CHARS_MAX, keep="end"),
            retry=retry,
        ),
    )


def worth_retrying(error: MusterError, *, time_left: bool) -> bool:
    """Whether the same work may well succeed when this peer does it again.

    The machine's doing (a worker killed by a signal, as when memory runs out; a job stopped by a deadline
    that has been moved since) is; what the task's own code did, or this machine's owner forbids, would only
    happen again.
    """
    if not isinstance(error, TaskError):
        return False
    if error.id == "worker.timeout":
        return time_left
    return error.id == "worker.crashed" and "signal" in error.fields


def defect(error: Exception) -> InternalError:
    """An exception that nobody foresaw, as an error that can be told."""
    return InternalError(
        "peer.defect",
        f"the peer failed: {type(error).__name__}: {error}",
        cause="a defect in Muster or in a plug-in",
        fix="report it, with the traceback",
        traceback="".join(traceback.format_exception(error)),
    )
