"""What people read of rounds: which updates came, how each was treated, what another rule would have made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.render import cell, duration, facts, metrics_line, moment, size, state, table
from muster.work import evaluates
from protos.v1 import admin_pb2 as pb


def delivered(round: pb.Round) -> str:
    """Updates in, of those asked; each peer counts once, however often it was asked."""
    training = [each for each in round.assignments if not evaluates(each.role)]
    got = {each.peer_id for each in training if each.state == "DELIVERED"}
    return f"{len(got)}/{len({each.peer_id for each in training})}"


def rounds_table(rounds: Sequence[pb.Round]) -> RenderableType:
    """How many updates came is shown where the rounds carry their assignments; lists of rounds do not."""
    if not rounds:
        return "No rounds yet."
    detailed = any(each.assignments for each in rounds)
    numbers = (*(["UPDATES"] if detailed else []), "UP", "DOWN", "TIME")
    made = table("ROUND", "STATE", *numbers, "METRICS", "REASON", numbers=("ROUND", *numbers))
    for each in rounds:
        took = duration(each.ended_at - each.opened_at) if each.ended_at and each.opened_at else "-"
        made.add_row(
            str(each.number),
            state(each.state),
            *([delivered(each)] if detailed else []),
            size(each.bytes_up),
            size(each.bytes_down),
            took,
            metrics_line(each.metrics),
            cell(each.reason),
        )
    return made


def assignments_table(assignments: Sequence[pb.RoundAssignment]) -> Table:
    """A round's assignments, one a row."""
    numbers = ("EXAMPLES", "BYTES", "NORM", "SCORE", "WEIGHT")
    made = table("PEER", "STATE", *numbers, "HOW IT WAS TREATED", numbers=numbers)
    for each in sorted(assignments, key=lambda a: (a.role, a.peer_id, a.attempt)):
        in_aggregate = each.state == "DELIVERED" and not evaluates(each.role)
        made.add_row(
            each.peer_id + (f" (attempt {each.attempt})" if each.attempt > 1 else ""),
            state(each.state),
            str(each.example_count) if each.example_count else "-",
            size(each.update_bytes or each.bytes_held),
            f"{each.norm:.4g}" if in_aggregate else "-",
            f"{each.score:.4g}" if in_aggregate else "-",
            f"{each.weight:.3f}" if in_aggregate else "-",
            cell(each.treatment or each.reason),
        )
    return made


def round_view(round: pb.Round) -> RenderableType:
    """What `round show` shows."""
    took = duration(round.ended_at - round.opened_at) if round.ended_at and round.opened_at else ""
    head = facts(
        [
            ("round", f"{round.number} of run {round.run_id}"),
            ("state", Text.assemble(state(round.state), f": {round.reason}" if round.reason else "")),
            ("rule", round.rule),
            ("codec", f"{round.codec} up, {round.codec_down or 'identity'} down"),
            ("base", f"version {round.base_version}  {round.base_digest}"),
            ("model", round.model_digest),
            ("metrics", metrics_line(round.metrics)),
            ("bytes", _round_bytes(round)),
            ("task sources", _sources(round.assignments)),
            ("opened", moment(round.opened_at)),
            ("time", took),
        ]
    )
    return Group(head, "", assignments_table(round.assignments))


def _sources(assignments: Sequence[pb.RoundAssignment]) -> str:
    """Which source code of the task was at work, and where which, if it was not the same everywhere."""
    peers = {each.peer_id: each.source_digest for each in assignments if each.source_digest}
    counted = Counter(sorted(peers.values())).most_common()
    if len(counted) < 2:
        return "".join(digest for digest, _ in counted)
    where = {found: ", ".join(sorted(peer for peer in peers if peers[peer] == found)) for found, _ in counted}
    return "not the same everywhere: " + "; ".join(f"{found[:12]} at {who}" for found, who in where.items())


def _round_bytes(round: pb.Round) -> str:
    up = f"{size(round.bytes_up)} up{_saved(round.bytes_up, round.bytes_up_dense)}"
    down = f"{size(round.bytes_down)} down{_saved(round.bytes_down, round.bytes_down_dense)}"
    return f"{up}, {down}"


def _saved(sent: int, dense: int) -> str:
    if sent >= 0.99 * dense:
        return ""
    fewer = f", {dense / sent:.1f} times fewer" if sent else ""
    return f" ({size(dense - sent)} saved{fewer})"


def round_explained(round: pb.Round) -> RenderableType:
    """A paragraph for each update that was aggregated or refused."""
    lines = [round.reason or f"round {round.number}", ""]
    if round.score_meaning:
        lines += [f"score of {round.rule.rpartition('+')[2]}: {round.score_meaning}", ""]
    for each in sorted(round.assignments, key=lambda a: (a.peer_id, a.attempt)):
        if evaluates(each.role):
            continue
        lines.append(f"{each.peer_id} ({each.state.lower()}): {each.reason}")
        if each.treatment:
            share = f"weight {each.weight:.4g}" if each.selected else "no share in the model"
            lines.append(f"    {share}, score {each.score:.4g}, norm {each.norm:.4g}: {each.treatment}")
    return "\n".join(lines)


def replay_view(found: pb.ReplayRoundResponse) -> RenderableType:
    """What `round replay` shows."""
    same = "the committed model, to the byte" if found.reproduced else "another model than the committed one"
    head = facts(
        [
            ("rule", found.rule),
            ("makes", same),
            ("how", found.reason),
            ("model", found.model_digest),
            ("committed", found.committed_digest),
            ("moves by", f"{found.norm:.6g} (L2); the committed one by {found.norm_committed:.6g}"),
            ("cosine", f"{found.cosine:.6f} between both moves"),
            ("distance", f"{found.distance:.4g} of the committed move"),
        ]
    )
    numbers = ("SCORE", "WEIGHT", "COMMITTED")
    made = table("PEER", *numbers, "HOW IT WAS TREATED", numbers=numbers)
    for each in found.updates:
        was = f"{each.weight_committed:.3f}" if each.selected_committed else "-"
        share = f"{each.weight:.3f}" if each.selected else "-"
        made.add_row(each.peer_id, f"{each.score:.4g}", share, was, each.treatment)
    return Group(head, "", made)
