"""`muster run submit | list | show | pause | resume | stop | remove`."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.output import confirm, emit, note, warn
from cli.settings import Settings, command

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's name (of several the newest; NAME@1 is the first submitted), its id, or the beginning of that.",
    ),
]


def register(app: typer.Typer) -> None:
    command(app, "submit", example="muster run submit run.toml --wait")(submit)
    command(app, "list", example="muster run list")(list_runs)
    command(app, "show", example="muster run show digits")(show)
    command(app, "pause", example="muster run pause digits")(pause)
    command(app, "resume", example="muster run resume digits")(resume)
    command(app, "stop", example="muster run stop digits --reason 'wrong learning rate'")(stop)
    command(app, "remove", example="muster run remove digits")(remove)


async def submit(
    settings: Settings,
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The run spec, a TOML file.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the run to its end; exit 3 if it fails or pauses.")
    ] = False,
    request_id: Annotated[
        str, typer.Option(metavar="ID", help="The same id submits once, however often it is sent.")
    ] = "",
) -> None:
    """Check a run spec and start it.

    Every mistake in the file is shown at once, with its line. What was submitted is fixed from then on. What may do
    badly is told as a warning, and the run goes on.
    """
    from cli.client import connect
    from cli.follow import follow
    from cli.json_form import to_json
    from cli.render import run_view
    from muster.spec.load import load_spec
    from protos.v1 import admin_pb2 as pb

    checked, text = load_spec(
        spec, load_methods=False
    )  # the coordinator's check tells them, with their lines
    async with connect(settings) as client:
        request = pb.SubmitRunRequest(
            spec_json=checked.canonical_json(), spec_toml=text, request_id=request_id or uuid.uuid4().hex
        )
        answer = await client.submit(request)
        run, warnings = answer.run, list(answer.warnings)
        warn(settings, warnings)
        if wait:
            note(settings, f"submitted {run.run_id}")
            run = await follow(client, settings, run, told=warnings)
            warnings = [each.reason for each in run.warnings]
    emit(settings, {**to_json(run), "warnings": warnings}, lambda: run_view(run))
    if not wait:
        note(
            settings,
            f"\nfollow it: muster run watch {run.run_id}\nwhat it waits for: muster why {run.run_id}",
        )


async def list_runs(settings: Settings) -> None:
    """All runs, with their state and newest metrics."""
    from cli.client import callings, connect
    from cli.json_form import to_json
    from cli.render import runs_table

    async with connect(settings) as client:
        runs = await client.runs()
    emit(settings, [to_json(run) for run in runs], lambda: runs_table(runs, callings(runs)))


async def show(settings: Settings, run: RunName) -> None:
    """One run: its state and why, its totals, what it was warned of; with --json its whole spec."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render import run_view

    async with connect(settings) as client:
        found = await client.run((await client.find_run(run)).run_id)
    emit(settings, to_json(found), lambda: run_view(found))


async def pause(settings: Settings, run: RunName) -> None:
    """Let the round under way end and open no other.

    What peers have done is kept; `muster run resume` goes on.
    """
    from protos.v1 import admin_pb2 as pb

    await _steer(settings, run, "PauseRun", pb.PauseRunRequest())


async def resume(settings: Settings, run: RunName) -> None:
    """Go on with a paused run, and ask peers again that were set aside.

    A run pauses itself when too many rounds in a row are skipped. Set aside is a peer whose own fault makes its work
    fail again and again; it is asked again too when its daemon starts anew.
    """
    from protos.v1 import admin_pb2 as pb

    await _steer(settings, run, "ResumeRun", pb.ResumeRunRequest())


async def stop(
    settings: Settings,
    run: RunName,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept with the run.")] = "",
) -> None:
    """End a run for good; its models stay."""
    from protos.v1 import admin_pb2 as pb

    await _steer(settings, run, "StopRun", pb.StopRunRequest(reason=reason), question="Stop {} for good?")


async def remove(settings: Settings, run: RunName) -> None:
    """Forget a run that has ended, with its rounds, events, models and updates.

    Nothing of it can be had back: pull the model first.
    """
    from protos.v1 import admin_pb2 as pb

    await _steer(
        settings, run, "RemoveRun", pb.RemoveRunRequest(), question="Remove {} with all its models for good?"
    )


async def _steer(settings: Settings, text: str, procedure: str, request: Any, *, question: str = "") -> None:
    """Calls a procedure that takes a run's id and gives the run."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render import run_view

    async with connect(settings) as client:
        request.run_id = (await client.find_run(text)).run_id
        if question:
            confirm(settings, question.format(request.run_id))
        run = (await client.call(procedure, request)).run
    emit(settings, to_json(run), lambda: run_view(run))
