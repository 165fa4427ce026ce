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

from muster.task.metrics import shown
from muster.work import evaluates
from protos.v1 import admin_pb2 as pb

STATE_STYLES = {
    **dict.fromkeys(("FINISHED", "COMMITTED", "DELIVERED", "ACTIVE"), "green"),
    **dict.fromkeys(("FAILED", "REJECTED", "REVOKED", "LOST"), "red"),
    **dict.fromkeys(
        ("PAUSED", "SKIPPED", "SUSPECT", "EXPIRED", "QUARANTINED", "CANCELLED", "DRAINING"), "yellow"
    ),
    **dict.fromkeys(
        ("RUNNING", "OPEN", "AGGREGATING", "PREPARING", "TRAINING", "UPLOADING", "ACCEPTED"), "cyan"
    ),
}
KIB = 1024
CELL_MAX = 200  # characters: three lines of a usual terminal's last column
WARNINGS_SHOWN = 10


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
    """How long ago a time is, in words."""
    return f"{duration(time.time() - at)} ago" if at else "never"


def metrics_line(metrics: Mapping[str, float]) -> str:
    """ "accuracy 0.961, loss 0.142"."""
    return shown({name: value for name, value in metrics.items() if name != "examples"})


def state(name: str) -> Text:
    """A state in its colour."""
    return Text(name, style=STATE_STYLES.get(name, ""))


def table(*columns: str, numbers: Sequence[str] = (), last_wraps: bool = True) -> Table:
    """Plain aligned columns; `numbers` are set to the right, and only the last column may wrap."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for at, column in enumerate(columns):
        wraps = last_wraps and at == len(columns) - 1
        made.add_column(column, justify="right" if column in numbers else "left", no_wrap=not wraps)
    return made


def one_line(text: str) -> str:
    """Without the traceback that `run logs` shows."""
    return " ".join(text.partition("Traceback (most recent call last)")[0].split()).removesuffix(":")


def cell(text: str) -> str:
    """One line for a column, and not without end."""
    line = one_line(text)
    return line if len(line) <= CELL_MAX else f"{line[: CELL_MAX - 4]} ..."


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


def runs_table(runs: Sequence[pb.Run], called: Mapping[str, str]) -> RenderableType:
    """`called`: each run's name besides its id."""
    if not runs:
        return "No runs yet. Submit one: muster run submit run.toml"
    made = table("NAME", "RUN", "STATE", "ROUNDS", "METRICS", "CREATED", "REASON", numbers=("ROUNDS",))
    for run in runs:
        rounds = f"{run.rounds_committed}/{run.rounds_total}"
        made.add_row(
            called.get(run.run_id, "-"),
            run.run_id,
            state(run.state),
            rounds,
            metrics_line(run.metrics),
            moment(run.created_at),
            cell(run.reason),
        )
    return made


def run_view(run: pb.Run, *, now: float | None = None) -> RenderableType:
    """What `run show` shows."""
    seconds = ((run.ended_at or now or time.time()) - run.started_at) if run.started_at else 0.0
    ratio = run.bytes_up_dense / run.bytes_up if run.bytes_up else 0.0
    saved = f", {ratio:.1f} times less than dense" if ratio > 1.05 else ""
    skipped = f", {run.rounds_skipped} skipped" if run.rounds_skipped else ""
    head = facts(
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
            ("task sources", run.source_digest),
            ("model digest", run.model_digest),
        ]
    )
    parts: list[RenderableType] = [head]
    if run.set_aside:
        parts += ["", Text("set aside", style="bold")]
        parts += [_aside_line(each.peer_id, each) for each in run.set_aside]
    if run.warnings:
        parts += ["", *warning_lines(run)]
    return Group(*parts)


def _aside_line(who: str, aside: pb.SetAside) -> Text:
    line = Text("  ")
    line.append(who, style="bold").append(f" since round {aside.round}: {aside.cause}")
    return line


def warning_lines(run: pb.Run) -> list[Text]:
    """What the run was warned of, newest last, and how often."""
    shown = run.warnings[-WARNINGS_SHOWN:]
    lines = [Text("warnings", style="bold")]
    if len(run.warnings) > len(shown):
        lines.append(Text(f"  {len(run.warnings) - len(shown)} earlier: muster run logs {run.run_id}"))
    for each in shown:
        line = Text("  ")
        line.append(each.reason, style="yellow").append(f" ({times})" if (times := repeated(each)) else "")
        lines.append(line)
    return lines


def repeated(warning: pb.RunWarning) -> str:
    """ "5 times, rounds 1 to 5", or "until round 5" if it was known before the first; empty for what came once."""
    if warning.times < 2:
        return ""
    first, last = warning.first_round, warning.last_round
    where = f", rounds {first} to {last}" if first != last else f", round {last}" if last else ""
    where = f", until round {last}" if last and not first else where
    return f"{warning.times} times{where}"


def _format_set_aside(peer: pb.Peer) -> list[str]:
    return [f"set aside in {each.run_id}: {each.cause}" for each in peer.set_aside]


def peers_table(peers: Sequence[pb.Peer]) -> RenderableType:
    """What `peer list` shows."""
    if not peers:
        return "No peers yet. Start one on its machine: muster join"
    numbers = ("DELIVERED", "REJECTED", "FAILED", "MISSED", "UP", "DOWN")
    made = table("PEER", "STATE", "DEVICE", "SEEN", *numbers, "REASON", numbers=numbers)
    for peer in peers:
        made.add_row(
            peer.peer_id,
            state(peer.state),
            peer.device,
            ago(peer.seen_at),
            str(peer.updates_delivered),
            str(peer.updates_rejected),
            str(peer.updates_failed),
            str(peer.updates_missed),
            size(peer.bytes_up),
            size(peer.bytes_down),
            cell("; ".join(_format_set_aside(peer) or [peer.reason])),
        )
    return made


def peer_view(peer: pb.Peer, recent: Sequence[pb.Event]) -> RenderableType:
    """What `peer show` shows."""
    head = facts(
        [
            ("peer", peer.peer_id),
            ("state", Text.assemble(state(peer.state), f": {peer.reason}" if peer.reason else "")),
            ("device", peer.device),
            ("version", peer.muster_version),
            ("session", str(peer.epoch)),
            ("enrolled", moment(peer.enrolled_at)),
            ("seen", ago(peer.seen_at)),
            (
                "updates",
                f"{peer.updates_delivered} delivered, {peer.updates_rejected} rejected, "
                f"{peer.updates_failed} failed, {peer.updates_missed} missed",
            ),
            ("bytes", f"{size(peer.bytes_up)} up, {size(peer.bytes_down)} down"),
            ("task sources", peer.source_digest),
        ]
    )
    aside = [_aside_line(each.run_id, each) for each in peer.set_aside]
    told: list[RenderableType] = ["", Text("set aside", style="bold"), *aside] if aside else []
    return Group(head, *told, "", *(event_line(event) for event in recent))


def models_table(models: Sequence[pb.Model]) -> RenderableType:
    """What `model list` shows."""
    if not models:
        return "No model yet: the initial one is being made."
    numbers = ("VERSION", "ROUND", "SIZE")
    made = table("VERSION", "ROUND", "SIZE", "KEPT", "CREATED", "DIGEST", "METRICS", numbers=numbers)
    for model in models:
        made.add_row(
            str(model.version),
            str(model.round),
            size(model.size_bytes),
            Text("pruned", style="yellow") if model.pruned else "yes",
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
    line.append(f" {one_line(event.reason)}")
    return line


def status_view(
    status: pb.GetStatusResponse, runs: Sequence[pb.Run], called: Mapping[str, str]
) -> RenderableType:
    """What `status` shows."""

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
    return Group(head, "", runs_table(live, called)) if live else head


def explanation_view(found: pb.ExplainRunResponse) -> RenderableType:
    """What `why` shows."""
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
    work = {each.peer_id: each for each in newest.assignments if not evaluates(each.role)} if newest else {}
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
    line.append(f"{entry['kind']:<22}", style="yellow" if entry["kind"] == "run.warned" else "red")
    line.append(f" {about}:" if about else "", style="bold")
    line.append(f" {entry['reason']}" + (f" [{entry['error_id']}]" if entry["error_id"] else ""))
    line.append(f" ({entry['repeated']})" if entry.get("repeated") else "")
    return line
