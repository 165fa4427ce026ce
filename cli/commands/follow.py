"""`muster run watch | logs | export`: what happened, as it happens and afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands.runs import RunName
from cli.json_output import emit_json
from cli.output import WARNED, console, emit, note, print_human
from cli.settings import Settings, command

if TYPE_CHECKING:
    from cli.client import Client
    from protos.v1 import admin_pb2 as pb

# Kinds of event that tell of something gone wrong, or that may.
FAILURES = frozenset(
    {
        "assignment.rejected",
        "assignment.expired",
        "assignment.lost",
        "round.skipped",
        "round.failed",
        "run.failed",
        "run.paused",
        "evaluation.failed",
        WARNED,
    }
)


def register(app: typer.Typer) -> None:
    command(app, "watch", example="muster run watch digits")(watch)
    command(app, "logs", example="muster run logs digits")(logs)
    command(app, "export", example="muster run export digits -o digits.json")(export)


async def watch(settings: Settings, run: RunName) -> None:
    """Follow a run to its end; exit 3 if it fails, or pauses itself after too many skipped rounds.

    With --json one event a line, from the first one on.
    """
    from cli.client import connect
    from cli.follow import follow
    from cli.render import run_view

    async with connect(settings) as client:
        ended = await follow(client, settings, await client.find_run(run), beside=False)
    if not settings.json:
        print_human(settings, run_view(ended))


async def logs(
    settings: Settings,
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Each time by itself, with the tracebacks of tasks.")
    ] = False,
) -> None:
    """What went wrong: failed, refused and lost work, by cause, and warnings.

    With --json a list of each time; with --follow too, one entry a line.
    """
    from cli.client import connect

    found: list[dict[str, Any]] = []
    async with connect(settings) as client:
        run_id = (await client.find_run(run)).run_id
        async for entry in _failures(client, run_id, follow):
            if not settings.json:
                if full or follow:
                    _print_failure(settings, entry, full=full)
            elif follow:
                emit_json(entry, line=True)
            found.append(entry)
    if settings.json and not follow:
        emit_json(found)
    elif not found:
        note(settings, "nothing went wrong")
    elif not (settings.json or full or follow):
        _print_causes(settings, found)


async def _failures(client: Client, run_id: str, follow: bool) -> AsyncIterator[dict[str, Any]]:
    from cli.json_form import to_json
    from cli.render import repeated

    warnings = {each.cause: each for each in (await client.run(run_id)).warnings}
    async for batch in client.events(run_id=run_id, follow=follow):
        for event in batch:
            if event.kind not in FAILURES or (event.kind == "run.paused" and not _by_itself(event)):
                continue
            entry = to_json(event)
            data = entry.pop("data")
            data = data if isinstance(data, dict) else {}
            entry["error_id"] = data.get("error_id", "")
            entry["message"] = data.get("message", "")
            if event.kind == WARNED:
                entry["cause"] = data.get("cause", "")
                newest = warnings.get(entry["cause"])
                entry["times"] = newest.times if newest else 1
                entry["repeated"] = repeated(newest) if newest else ""
            entry["traceback"] = data.get("traceback") or await _traceback(client, event)
            yield entry


async def _traceback(client: Client, event: pb.Event) -> str:
    """As the round keeps it; events need not repeat it."""
    if not (event.assignment_id and event.round):
        return ""
    kept = await client.round(event.run_id, event.round)
    return next(
        (each.traceback for each in kept.assignments if each.assignment_id == event.assignment_id), ""
    )


def _by_itself(event: pb.Event) -> bool:
    """Of a run that paused: since too many rounds were skipped, and not on request."""
    return "skipped_in_row" in event.data_json


def _print_causes(settings: Settings, entries: list[dict[str, Any]]) -> None:
    from cli.failures import by_cause, cause_line

    out = console(settings)
    for cause in by_cause(entries):
        out.print(cause_line(cause), soft_wrap=True)
    if any(entry["traceback"] for entry in entries):
        note(settings, "each time by itself, with tracebacks: --full")


def _print_failure(settings: Settings, entry: dict[str, Any], *, full: bool) -> None:
    from rich.text import Text

    from cli.render import failure_line

    out = console(settings)
    out.print(failure_line(entry), soft_wrap=True)
    for line in entry["traceback"].rstrip().splitlines() if full else ():
        out.print(Text(f"    {line}", style="dim"), soft_wrap=True)


async def export(
    settings: Settings,
    run: RunName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="RUN.json if left out.")
    ] = None,
) -> None:
    """Write all that is known of a run into one JSON file: spec, rounds, assignments, events, metrics."""
    from cli.client import connect
    from cli.export import collect, write_document
    from cli.target import target

    async with connect(settings) as client:
        found = await client.find_run(run)
        path = target(settings, output, f"{found.run_id}.json")
        document = await collect(client, settings, found)
    write_document(path, document)
    data = {"run_id": found.run_id, "path": str(path), "size_bytes": path.stat().st_size}
    emit(
        settings, data, lambda: f"{path}: {len(document['rounds'])} rounds, {len(document['events'])} events"
    )
