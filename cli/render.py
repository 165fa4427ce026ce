"""What people read: messages of the admin service as tables and lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from protos.v1 import admin_pb2 as pb

STATE_STYLES = {
    **dict.fromkeys(("FINISHED", "COMMITTED", "DELIVERED", "ACTIVE"), "green"),
    **dict.fromkeys(("FAILED", "REJECTED", "REVOKED", "LOST"), "red"),
    **dict.fromkeys(
        ("PAUSED", "SKIPPED", "SUSPECT", "EXPIRED", "QUARANTINED", "CANCELLED", "DRAINING"), "yellow"
    ),
    **dict.fromkeys(("RUNNING", "OPEN", "AGGREGATING", "TRAINING", "UPLOADING", "ACCEPTED"), "cyan"),
}
KIB = 1024


def size(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < KIB:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= KIB
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """4.25 -> "4.2 s"; 3725 -> "1 h 2 min"."""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def moment(at: float) -> str:
    """Local time, to the second."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else "-"


def ago(at: float) -> str:
    return f"{duration(time.time() - at)} ago" if at else "never"


def metrics_line(metrics: Mapping[str, float]) -> str:
    """ "accuracy 0.961, loss 0.142"."""
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()) if name != "examples")


def state(name: str) -> Text:
    return Text(name, style=STATE_STYLES.get(name, ""))


def table(*columns: str, numbers: Sequence[str] = (), last_wraps: bool = True) -> Table:
    """Plain aligned columns; `numbers` are set to the right, and only the last column may wrap."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for at, column in enumerate(columns):
        wraps = last_wraps and at == len(columns) - 1
        made.add_column(column, justify="right" if column in numbers else "left", no_wrap=not wraps)
    return made


def facts(pairs: Iterable[tuple[str, str | Text]]) -> Table:
    """Names and values, one pair a line; empty values are left out."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column()
    for name, value in pairs:
        if str(value):
            made.add_row(name, value)
    return made


def prose(text: str) -> Group:
    """A docstring, its paragraphs as wide as the terminal; lines that are set in stay lines, and set in."""
    joined: list[str] = []
    for before, line in pairwise(["", *text.splitlines()]):
        if before and line and not before.startswith(" ") and not line.startswith(" "):
            joined[-1] += f" {line}"
        else:
            joined.append(line)
    return Group(
        *(
            Padding(Text(line.lstrip() or " "), (0, 0, 0, len(line) - len(line.lstrip())), expand=False)
            for line in joined
        )
    )


def runs_table(runs: Sequence[pb.Run]) -> RenderableType:
    if not runs:
        return "No runs yet. Submit one: muster run submit run.toml"
    made = table("RUN", "STATE", "ROUNDS", "METRICS", "CREATED", "REASON", numbers=("ROUNDS",))
    for run in runs:
        rounds = f"{run.rounds_committed}/{run.rounds_total}"
        made.add_row(
            run.run_id,
            state(run.state),
            rounds,
            metrics_line(run.metrics),
            moment(run.created_at),
            run.reason,
        )
    return made


def run_view(run: pb.Run, *, now: float | None = None) -> RenderableType:
    seconds = ((run.ended_at or now or time.time()) - run.started_at) if run.started_at else 0.0
    ratio = run.bytes_up_dense / run.bytes_up if run.bytes_up else 0.0
    saved = f", {ratio:.1f} times less than dense" if ratio > 1.05 else ""
    skipped = f", {run.rounds_skipped} skipped" if run.rounds_skipped else ""
    return facts(
        [
            ("run", run.run_id),
            ("name", run.name),
            ("task", run.task),
            ("state", Text.assemble(state(run.state), f": {run.reason}" if run.reason else "")),
            ("rounds", f"{run.rounds_committed} of {run.rounds_total} committed{skipped}"),
            ("metrics", metrics_line(run.metrics)),
            ("bytes up", f"{size(run.bytes_up)}{saved}"),
            ("bytes down", size(run.bytes_down)),
            ("created", moment(run.created_at)),
            ("time", duration(seconds) if run.started_at else ""),
            ("spec digest", run.spec_digest),
            ("model digest", run.model_digest),
        ]
    )


def delivered(round: pb.Round) -> str:
    """Updates in, of those asked; each peer counts once, however often it was asked."""
    training = [each for each in round.assignments if each.role != "evaluate"]
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
            each.reason,
        )
    return made


def assignments_table(assignments: Sequence[pb.RoundAssignment]) -> Table:
    numbers = ("EXAMPLES", "BYTES", "NORM", "SCORE", "WEIGHT")
    made = table("PEER", "STATE", *numbers, "HOW IT WAS TREATED", numbers=numbers)
    for each in sorted(assignments, key=lambda a: (a.role, a.peer_id, a.attempt)):
        in_aggregate = each.state == "DELIVERED" and each.role != "evaluate"
        made.add_row(
            each.peer_id + (f" (attempt {each.attempt})" if each.attempt > 1 else ""),
            state(each.state),
            str(each.example_count) if each.example_count else "-",
            size(each.update_bytes or each.bytes_held),
            f"{each.norm:.4g}" if in_aggregate else "-",
            f"{each.score:.4g}" if in_aggregate else "-",
            f"{each.weight:.3f}" if in_aggregate else "-",
            each.treatment or each.reason,
        )
    return made


def round_view(round: pb.Round) -> RenderableType:
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
            ("opened", moment(round.opened_at)),
            ("time", took),
        ]
    )
    return Group(head, "", assignments_table(round.assignments))


def _round_bytes(round: pb.Round) -> str:
    up = f"{size(round.bytes_up)} up{_saved(round.bytes_up, round.bytes_up_dense)}"
    return f"{up}, {size(round.bytes_down)} down{_saved(round.bytes_down, round.bytes_down_dense)}"


def _saved(sent: int, dense: int) -> str:
    return f" ({size(dense - sent)} saved, {dense / sent:.1f} times fewer)" if 0 < sent < 0.99 * dense else ""


def round_explained(round: pb.Round) -> RenderableType:
    """A paragraph for each update that was aggregated or refused."""
    lines = [round.reason or f"round {round.number}", ""]
    if round.score_meaning:
        lines += [f"score of {round.rule.rpartition('+')[2]}: {round.score_meaning}", ""]
    for each in sorted(round.assignments, key=lambda a: (a.peer_id, a.attempt)):
        if each.role == "evaluate":
            continue
        lines.append(f"{each.peer_id} ({each.state.lower()}): {each.reason}")
        if each.treatment:
            share = f"weight {each.weight:.4g}" if each.selected else "no share in the model"
            lines.append(f"    {share}, score {each.score:.4g}, norm {each.norm:.4g}: {each.treatment}")
    return "\n".join(lines)


def replay_view(found: pb.ReplayRoundResponse) -> RenderableType:
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


def peers_table(peers: Sequence[pb.Peer]) -> RenderableType:
    if not peers:
        return "No peers yet. Start one on its machine: muster join"
    numbers = ("DELIVERED", "REJECTED", "UP", "DOWN")
    made = table("PEER", "STATE", "DEVICE", "SEEN", *numbers, "REASON", numbers=numbers)
    for peer in peers:
        made.add_row(
            peer.peer_id,
            state(peer.state),
            peer.device,
            ago(peer.seen_at),
            str(peer.updates_delivered),
            str(peer.updates_rejected),
            size(peer.bytes_up),
            size(peer.bytes_down),
            peer.reason,
        )
    return made


def peer_view(peer: pb.Peer, recent: Sequence[pb.Event]) -> RenderableType:
    head = facts(
        [
            ("peer", peer.peer_id),
            ("state", Text.assemble(state(peer.state), f": {peer.reason}" if peer.reason else "")),
            ("device", peer.device),
            ("version", peer.muster_version),
            ("session", str(peer.epoch)),
            ("enrolled", moment(peer.enrolled_at)),
            ("seen", ago(peer.seen_at)),
            ("updates", f"{peer.updates_delivered} delivered, {peer.updates_rejected} rejected"),
            ("bytes", f"{size(peer.bytes_up)} up, {size(peer.bytes_down)} down"),
        ]
    )
    return Group(head, "", *(event_line(event) for event in recent))


def models_table(models: Sequence[pb.Model]) -> RenderableType:
    if not models:
        return "No model yet: the initial one is being made."
    numbers = ("VERSION", "ROUND", "SIZE")
    made = table("VERSION", "ROUND", "SIZE", "CREATED", "DIGEST", "METRICS", numbers=numbers)
    for model in models:
        made.add_row(
            str(model.version),
            str(model.round),
            size(model.size_bytes),
            moment(model.created_at),
            model.digest[:16],
            metrics_line(model.metrics),
        )
    return made


def event_line(event: pb.Event) -> Text:
    """One line: when, what, about whom, why."""
    about = [f"round {event.round}"] if event.round else []
    about += [event.peer_id] if event.peer_id else []
    clock = datetime.fromtimestamp(event.at).astimezone().strftime("%H:%M:%S")
    line = Text(f"{clock}  {event.kind:<22}")
    line.append(f" {', '.join(about)}:" if about else "", style="bold")
    line.append(f" {event.reason}")
    return line


def status_view(status: pb.GetStatusResponse, runs: Sequence[pb.Run]) -> RenderableType:
    def counts(found: Mapping[str, int]) -> str:
        return ", ".join(f"{number} {name.lower()}" for name, number in sorted(found.items())) or "none"

    head = facts(
        [
            (
                "coordinator",
                f"{status.address}, Muster {status.coordinator_version}, protocol {status.protocol}",
            ),
            ("up for", duration(time.time() - status.started_at)),
            ("peers", counts(status.peers)),
            ("runs", counts(status.runs)),
            ("store", f"{status.store}, {size(status.disk_free_bytes)} free"),
        ]
    )
    live = [run for run in runs if run.state in ("QUEUED", "RUNNING", "PAUSED")]
    return Group(head, "", runs_table(live)) if live else head


def explanation_view(found: pb.ExplainRunResponse) -> RenderableType:
    parts: list[RenderableType] = [Text(found.sentence, style="bold")]
    parts += [Text(f"  {detail}") for detail in found.details]
    if found.recent:
        parts += ["", *(event_line(event) for event in found.recent)]
    return Group(*parts)


def run_line(run: pb.Run) -> Text:
    """The run in one line, for the head of a live screen."""
    took = duration((run.ended_at or time.time()) - run.started_at) if run.started_at else "not started"
    line = Text(run.run_id, style="bold")
    line.append("  ").append_text(state(run.state))
    line.append(f"  {run.rounds_committed}/{run.rounds_total} rounds  {took}")
    line.append(f"  {size(run.bytes_up)} up  {size(run.bytes_down)} down")
    if run.metrics:
        line.append(f"  {metrics_line(run.metrics)}", style="bold")
    return line


def followed_peers_table(peers: Sequence[pb.Peer], newest: pb.Round | None) -> RenderableType:
    """Each peer and its part in the newest round."""
    if not peers:
        return "No peers yet. Start one on its machine: muster join"
    work = {each.peer_id: each for each in newest.assignments if each.role != "evaluate"} if newest else {}
    made = table("PEER", "STATE", "THIS ROUND", "WEIGHT", "DELIVERED", "REJECTED", numbers=("WEIGHT",))
    for peer in peers:
        part = work.get(peer.peer_id)
        weight = f"{part.weight:.3f}" if part and part.treatment else "-"
        made.add_row(
            peer.peer_id,
            state(peer.state),
            state(part.state) if part else "-",
            weight,
            str(peer.updates_delivered),
            str(peer.updates_rejected),
        )
    return made


def failure_line(entry: Mapping[str, Any]) -> Text:
    """One failure as `run logs` gathers it."""
    about = ", ".join(
        part for part in (f"round {entry['round']}" if entry["round"] else "", entry["peer_id"]) if part
    )
    line = Text(f"{moment(entry['at'])}  ")
    line.append(f"{entry['kind']:<22}", style="red")
    line.append(f" {about}:" if about else "", style="bold")
    line.append(f" {entry['reason']}" + (f" [{entry['error_id']}]" if entry["error_id"] else ""))
    return line
