"""Messages of the membership service to and from what the coordinator works with.

Texts from a peer are cleaned and bounded here, where they enter.
"""

from __future__ import annotations

import json

from coordinator.engine.assignments import settled_round
from coordinator.engine.state import (
    AssignmentEvaluated,
    AssignmentFailed,
    AssignmentProgressed,
    AssignmentState,
    AssignmentStatus,
    Event,
    ModelVersion,
    RunState,
)
from coordinator.membership import detector
from exchange.names import FACTOR
from muster.errors import UsageError
from muster.seeds import assignment_seed
from muster.task.metrics import EXAMPLES_MAX, NAME_CHARACTERS_MAX
from muster.task.sources import checked_digest
from muster.texts import DESCRIPTION_CHARS_MAX, many_lines, one_line
from muster.work import TRAIN, Work, evaluates
from protos.v1 import membership_pb2 as pb

NAME_LENGTH_MAX = 64
SECRET_LENGTH_MIN = 16
WARNINGS_MAX = 4  # of one report
WARNING_CHARACTERS_MAX = 1_000

_PROGRESS = {
    pb.ASSIGNMENT_PHASE_ACCEPTED: AssignmentStatus.ACCEPTED,
    pb.ASSIGNMENT_PHASE_PREPARING: AssignmentStatus.PREPARING,
    pb.ASSIGNMENT_PHASE_TRAINING: AssignmentStatus.TRAINING,
    pb.ASSIGNMENT_PHASE_UPLOADING: AssignmentStatus.UPLOADING,
}


def report_event(run_id: str, report: pb.AssignmentReport, actor: str) -> Event:
    if report.phase in _PROGRESS:
        return AssignmentProgressed(
            run_id=run_id,
            actor=actor,
            assignment_id=report.assignment_id,
            status=_PROGRESS[report.phase],
            warnings=_warnings(report),
        )
    if report.phase == pb.ASSIGNMENT_PHASE_EVALUATED:
        return AssignmentEvaluated(
            run_id=run_id,
            actor=actor,
            assignment_id=report.assignment_id,
            metrics={one_line(name, NAME_CHARACTERS_MAX): value for name, value in report.metrics.items()},
            examples=min(report.example_count, EXAMPLES_MAX),
            warnings=_warnings(report),
            source_digest=checked_digest(report.source_digest),
        )
    if report.phase == pb.ASSIGNMENT_PHASE_FAILED:
        failure = report.failure
        return AssignmentFailed(
            run_id=run_id,
            actor=actor,
            assignment_id=report.assignment_id,
            error_id=one_line(failure.error_id, DESCRIPTION_CHARS_MAX),
            message=many_lines(failure.message),
            traceback=many_lines(failure.traceback, keep="end"),
            retry=failure.retry,
        )
    raise UsageError("session.bad_report", f"phase {report.phase} is unknown here")


def _warnings(report: pb.AssignmentReport) -> tuple[str, ...]:
    return tuple(one_line(sentence, WARNING_CHARACTERS_MAX) for sentence in report.warnings[:WARNINGS_MAX])


def is_name(name: str) -> bool:
    allowed = name.replace(".", "").replace("_", "").replace("-", "")
    plain = allowed.isascii() and allowed.isalnum() and name[0] not in ".-"
    return 0 < len(name) <= NAME_LENGTH_MAX and plain


def enrolled(request: pb.EnrolRequest, secret_hash: str) -> detector.Enrolled:
    """Raises `UsageError` "peer.bad_name", "peer.bad_secret"."""
    name = request.name
    if not is_name(name):
        raise UsageError(
            "peer.bad_name",
            f"{name!r} is no peer name",
            cause=f"a name has 1 to {NAME_LENGTH_MAX} letters, digits, '.', '_' or '-'",
            fix="set peer.name in the configuration, or --name",
        )
    if len(request.secret) < SECRET_LENGTH_MIN:
        raise UsageError("peer.bad_secret", f"a peer's secret has at least {SECRET_LENGTH_MIN} characters")
    return detector.Enrolled(
        peer_id=name,
        secret_hash=secret_hash,
        device=one_line(request.device, DESCRIPTION_CHARS_MAX),
        muster_version=one_line(request.muster_version, DESCRIPTION_CHARS_MAX),
        instance=one_line(request.instance, DESCRIPTION_CHARS_MAX),
    )


def cancel(assignment_id: str, reason: str) -> pb.SessionResponse:
    return pb.SessionResponse(cancel=pb.Cancel(assignment_id=assignment_id, reason=reason))


def closing(reason: str, *, reconnect: bool) -> pb.SessionResponse:
    return pb.SessionResponse(closing=pb.Closing(reason=reason, reconnect=reconnect))


def restore(run_id: str, digest: str, size_bytes: int) -> pb.SessionResponse:
    return pb.SessionResponse(restore=pb.Restore(run_id=run_id, digest=digest, size_bytes=size_bytes))


def run_ended(run_id: str) -> pb.SessionResponse:
    return pb.SessionResponse(run_ended=pb.RunEnded(run_id=run_id))


def offer(
    run: RunState, assignment: AssignmentState, model: ModelVersion, seconds_left: float
) -> pb.SessionResponse:
    round_, work = run.rounds.get(assignment.round), assignment.work
    return pb.SessionResponse(
        offer=pb.Assignment(
            assignment_id=assignment.assignment_id,
            run_id=run.run_id,
            round=assignment.round,
            work=pb.Work(
                role=work.role,
                base=pb.Base(
                    version=model.version,
                    digest=model.digest,
                    size_bytes=model.size_bytes,
                    layout_digest=model.layout_digest,
                ),
                groups=_groups(run, work),
                params_json=json.dumps(dict(work.params)) if work.params else "",
            ),
            spec_json=run.spec.canonical_json(),
            seed=assignment_seed(run.spec.seed, work.role, assignment.round, assignment.peer_id),
            deadline_seconds=max(0.0, seconds_left),
            # A site evaluates with what it has kept from training.
            counted_round=settled_round(
                run, assignment.peer_id, TRAIN if evaluates(work.role) else work.role
            ),
            source_digest=run.source_digest,
            cohort_size=0 if round_ is None else len(round_.cohort),
        )
    )


def _groups(run: RunState, work: Work) -> tuple[str, ...]:
    """What comes down beside the base: the groups that the schedule asks for, else all that the algorithm has the
    coordinator keep, and the factor that all updates of the round share, if they do."""
    if evaluates(work.role) or not work.base:
        return work.groups
    from exchange import links
    from exchange.declared_groups import groups_of_run

    kept = (group.name for group in groups_of_run(run.spec, work.role) if group.keep)
    return (*(work.groups or kept), *((FACTOR,) if links.shares_factor(run.spec) else ()))
