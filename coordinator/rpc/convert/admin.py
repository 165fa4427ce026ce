"""Rows of the store to messages of the admin service, and nothing else.

A database may hold what an earlier version let in, or what a hand has written into it. So texts are cleaned and
bounded here once more, metrics are counted, and numbers fit their fields: every message is far below what gRPC carries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from coordinator.engine.state import RunState
from coordinator.store import rows
from muster.task.metrics import SHOWN_MAX, SHOWN_NAME_CHARACTERS_MAX
from muster.texts import many_lines, one_line
from protos.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from coordinator.replay import Replayed


UNREADABLE = "UNREADABLE"  # the state of a run that cannot go on at this coordinator
SET_ASIDE_MAX = 100
JSON_BYTES_MAX = 1 << 20  # of a spec or an event's data; what is longer is left out
REPLAY_BYTES_MAX = 3 << 20  # of the one answer that is no list; above, sentences are left out


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run's rounds are made with, as far as its spec can be read."""

    codec: str
    codec_down: str
    rule: str  # with its pre-rules
    own_rule: str


def recipe(row: rows.RunRow) -> Recipe:
    spec = _loaded(row.spec_json)
    aggregation, compression = _table(spec, "aggregation"), _table(spec, "compression")
    rule, pre = str(aggregation.get("rule", "")), aggregation.get("pre", ())
    names = [*map(str, pre if isinstance(pre, list) else ()), rule]
    return Recipe(
        codec=text(str(compression.get("up", ""))),
        codec_down=text(str(compression.get("down", ""))),
        rule=text("+".join(names)),
        own_rule=rule,
    )


def run(row: rows.RunRow) -> pb.Run:
    total = _loaded(row.spec_json).get("rounds", 0)
    return pb.Run(
        run_id=row.run_id,
        name=text(row.name),
        state=text(row.state),
        reason=text(row.reason),
        task=text(row.task),
        spec_json=_bounded_json(row.spec_json),
        spec_digest=row.spec_digest,
        rounds_total=whole(total, 32),
        rounds_committed=whole(row.committed, 32),
        rounds_skipped=whole(row.skipped, 32),
        model_digest=row.model_digest,
        source_digest=text(row.source_digest),
        created_at=row.created_at,
        started_at=row.started_at or 0.0,
        ended_at=row.ended_at or 0.0,
        bytes_up=whole(row.bytes_up),
        bytes_down=whole(row.bytes_down),
        bytes_up_dense=whole(row.bytes_up_dense),
        metrics=metrics(row.metrics),
        needs_resume=_needs_resume(row),
    )


def _needs_resume(row: rows.RunRow) -> bool:
    """Whether it is paused after a skipped round: by itself, or by somebody who will hardly have it go on like that."""
    return row.state == "PAUSED" and row.skipped_in_row > 0


def set_aside(run: RunState, peer_id: str = "") -> list[pb.SetAside]:
    """Of one peer, or of all; so many at most."""
    found = (
        pb.SetAside(
            run_id=run.run_id,
            peer_id=standing.peer_id,
            round=whole(standing.round, 32),
            cause=one_line(standing.cause),
            error_id=one_line(standing.error_id),
        )
        for standing in run.standings.values()
        if standing.aside and peer_id in ("", standing.peer_id)
    )
    return list(islice(found, SET_ASIDE_MAX))


def warning(row: rows.WarningRow) -> pb.RunWarning:
    return pb.RunWarning(
        cause=one_line(row.cause),
        reason=one_line(row.reason),
        peer_id=row.peer_id,
        times=whole(row.times, 32),
        first_round=whole(row.first_round, 32),
        last_round=whole(row.last_round, 32),
        last_at=row.last_at,
    )


def round(row: rows.RoundRow, made_with: Recipe, totals: rows.RoundTotals | None = None) -> pb.Round:
    """Without its assignments; with `totals`, what these add up to."""
    return pb.Round(
        run_id=row.run_id,
        number=whole(row.number, 32),
        state=text(row.state),
        reason=text(row.reason),
        base_version=whole(row.base_version, 32),
        base_digest=row.base_digest,
        model_digest=row.model_digest,
        opened_at=row.opened_at or 0.0,
        ended_at=row.ended_at or 0.0,
        deadline_at=row.deadline_at or 0.0,
        metrics=metrics(row.metrics),
        bytes_up=whole(row.bytes_up),
        bytes_down=whole(row.bytes_down),
        bytes_up_dense=whole(totals.bytes_up_dense) if totals is not None else 0,
        codec=made_with.codec,
        codec_down=made_with.codec_down,
        rule=made_with.rule,
    )


def assignment(row: rows.AssignmentRow, bytes_held: int = 0) -> pb.RoundAssignment:
    return pb.RoundAssignment(
        assignment_id=row.assignment_id,
        peer_id=row.peer_id,
        state=text(row.state),
        reason=text(row.reason),
        role=text(row.work.role),
        attempt=whole(row.attempt, 32),
        update_bytes=whole(row.size_bytes),
        bytes_held=bytes_held,
        example_count=whole(row.examples),
        norm=row.norm or 0.0,
        score=row.score or 0.0,
        weight=row.weight or 0.0,
        selected=row.selected,
        treatment=text(row.treatment),
        traceback=many_lines(row.traceback, keep="end"),
        metrics=metrics(row.metrics),
        source_digest=text(row.source_digest),
    )


def replayed(made: Replayed, before: Mapping[str, rows.AssignmentRow]) -> pb.ReplayRoundResponse:
    table, compared = made.table, made.comparison
    message = pb.ReplayRoundResponse(
        rule="+".join((*table.pre, table.rule)),
        reproduced=made.reproduced,
        model_digest=made.result.model_digest,
        committed_digest=made.committed_digest,
        norm=compared.norm,
        norm_committed=compared.norm_committed,
        cosine=compared.cosine,
        distance=compared.distance,
        reason=text(made.result.reason),
        updates=[
            pb.ReplayedUpdate(
                assignment_id=treated.assignment_id,
                peer_id=before[treated.assignment_id].peer_id,
                weight=treated.weight,
                weight_committed=before[treated.assignment_id].weight or 0.0,
                score=treated.score,
                selected=treated.selected,
                selected_committed=before[treated.assignment_id].selected,
                treatment=one_line(treated.sentence),
            )
            for treated in made.result.treatments
        ],
    )
    if message.ByteSize() > REPLAY_BYTES_MAX:
        for each in message.updates:
            each.treatment = ""
    return message


def peer(row: rows.PeerRow) -> pb.Peer:
    return pb.Peer(
        peer_id=row.peer_id,
        state=text(row.state),
        reason=text(row.reason),
        epoch=whole(row.epoch),
        device=text(row.device),
        muster_version=text(row.muster_version),
        enrolled_at=row.enrolled_at or 0.0,
        seen_at=row.seen_at or 0.0,
        updates_delivered=whole(row.updates_delivered, 32),
        updates_rejected=whole(row.updates_rejected, 32),
        updates_failed=whole(row.updates_failed, 32),
        updates_missed=whole(row.updates_missed, 32),
        bytes_up=whole(row.bytes_up),
        bytes_down=whole(row.bytes_down),
        source_digest=text(row.source_digest),
    )


def model(row: rows.ModelRow, *, kept: bool) -> pb.Model:
    """`kept`: its bytes are here."""
    return pb.Model(
        run_id=row.run_id,
        version=whole(row.version, 32),
        round=whole(row.round, 32),
        digest=row.digest,
        size_bytes=whole(row.size_bytes),
        created_at=row.created_at,
        metrics=metrics(row.metrics),
        pruned=not kept,
    )


def event(row: rows.EventRow) -> pb.Event:
    return pb.Event(
        sequence=whole(row.sequence),
        at=row.at,
        kind=text(row.kind),
        run_id=row.run_id,
        round=whole(row.round, 32),
        assignment_id=row.assignment_id,
        peer_id=row.peer_id,
        reason=text(row.reason),
        data_json=_bounded_json(row.data_json),
        actor=text(row.actor),
    )


# -- what fits into a message ------------------------------------------------------------------------------------------


def text(stored: str) -> str:
    return many_lines(stored)


def metrics(stored: Mapping[str, Any]) -> dict[str, float]:
    """The first ones by name, if there are far too many."""
    found = {
        one_line(name, SHOWN_NAME_CHARACTERS_MAX): float(value)
        for name, value in stored.items()
        if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64)
    }
    return dict(sorted(found.items())[:SHOWN_MAX])


def whole(stored: Any, bits: int = 64) -> int:
    """Clipped to an unsigned field of so many bits; 0 for what is no number."""
    return min(max(0, stored), 2**bits - 1) if isinstance(stored, int) else 0


def _bounded_json(stored: str) -> str:
    size = len(stored.encode())
    return stored if size <= JSON_BYTES_MAX else json.dumps({"left_out": f"{size} bytes"})


def _loaded(document: str) -> dict[str, Any]:
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _table(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = spec.get(name)
    return found if isinstance(found, dict) else {}
