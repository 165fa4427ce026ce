"""Rows of the store to messages of the admin service, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from coordinator.store import rows
from protos.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from coordinator.replay import Replayed


def run(row: rows.RunRow, rounds_total: int) -> pb.Run:
    return pb.Run(
        run_id=row.run_id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        task=row.task,
        spec_json=row.spec_json,
        spec_digest=row.spec_digest,
        rounds_total=rounds_total,
        rounds_committed=row.committed,
        rounds_skipped=row.skipped,
        model_digest=row.model_digest,
        created_at=row.created_at,
        started_at=row.started_at or 0.0,
        ended_at=row.ended_at or 0.0,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        bytes_up_dense=row.bytes_up_dense,
        metrics=row.metrics,
    )


def warning(row: rows.WarningRow) -> pb.RunWarning:
    return pb.RunWarning(
        cause=row.cause,
        reason=row.reason,
        peer_id=row.peer_id,
        times=row.times,
        first_round=row.first_round,
        last_round=row.last_round,
        last_at=row.last_at,
    )


def round(row: rows.RoundRow, *, codec: str, codec_down: str, rule: str) -> pb.Round:
    return pb.Round(
        run_id=row.run_id,
        number=row.number,
        state=row.state,
        reason=row.reason,
        base_version=row.base_version,
        base_digest=row.base_digest,
        model_digest=row.model_digest,
        opened_at=row.opened_at or 0.0,
        ended_at=row.ended_at or 0.0,
        deadline_at=row.deadline_at or 0.0,
        assignments=[assignment(each) for each in row.assignments],
        metrics=row.metrics,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        bytes_up_dense=sum(each.dense_bytes for each in row.assignments),
        codec=codec,
        codec_down=codec_down,
        rule=rule,
    )


def assignment(row: rows.AssignmentRow, bytes_held: int = 0) -> pb.RoundAssignment:
    return pb.RoundAssignment(
        assignment_id=row.assignment_id,
        peer_id=row.peer_id,
        state=row.state,
        reason=row.reason,
        role=row.role,
        attempt=row.attempt,
        update_bytes=row.size_bytes,
        bytes_held=bytes_held,
        example_count=row.examples,
        norm=row.norm or 0.0,
        score=row.score or 0.0,
        weight=row.weight or 0.0,
        selected=row.selected,
        treatment=row.treatment,
        traceback=row.traceback,
        metrics=row.metrics,
    )


def replayed(made: Replayed, before: Mapping[str, rows.AssignmentRow]) -> pb.ReplayRoundResponse:
    table, compared = made.table, made.comparison
    return pb.ReplayRoundResponse(
        rule="+".join((*table.pre, table.rule)),
        reproduced=made.reproduced,
        model_digest=made.result.model_digest,
        committed_digest=made.committed_digest,
        norm=compared.norm,
        norm_committed=compared.norm_committed,
        cosine=compared.cosine,
        distance=compared.distance,
        reason=made.result.reason,
        updates=[
            pb.ReplayedUpdate(
                assignment_id=treated.assignment_id,
                peer_id=before[treated.assignment_id].peer_id,
                weight=treated.weight,
                weight_committed=before[treated.assignment_id].weight or 0.0,
                score=treated.score,
                selected=treated.selected,
                selected_committed=before[treated.assignment_id].selected,
                treatment=treated.sentence,
            )
            for treated in made.result.treatments
        ],
    )


def peer(row: rows.PeerRow) -> pb.Peer:
    return pb.Peer(
        peer_id=row.peer_id,
        state=row.state,
        reason=row.reason,
        epoch=row.epoch,
        device=row.device,
        muster_version=row.muster_version,
        enrolled_at=row.enrolled_at or 0.0,
        seen_at=row.seen_at or 0.0,
        updates_delivered=row.updates_delivered,
        updates_rejected=row.updates_rejected,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
    )


def model(row: rows.ModelRow) -> pb.Model:
    return pb.Model(
        run_id=row.run_id,
        version=row.version,
        round=row.round,
        digest=row.digest,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        metrics=row.metrics,
    )


def event(row: rows.EventRow) -> pb.Event:
    return pb.Event(
        sequence=row.sequence,
        at=row.at,
        kind=row.kind,
        run_id=row.run_id,
        round=row.round,
        assignment_id=row.assignment_id,
        peer_id=row.peer_id,
        reason=row.reason,
        data_json=row.data_json,
    )
