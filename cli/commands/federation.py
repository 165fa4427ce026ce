"""`muster status` and `muster why`: the two questions asked most."""

from __future__ import annotations

import typer

from cli.commands.runs import RunName
from cli.output import emit
from cli.settings import Settings, command


def register(app: typer.Typer) -> None:
    command(app, "status", example="muster status")(status)
    command(app, "why", example="muster why digits")(why)


async def status(settings: Settings) -> None:
    """The federation at a glance: coordinator, peers, live runs."""
    from cli.client import callings, connect
    from cli.json_form import to_json
    from cli.render import status_view
    from protos.v1 import admin_pb2 as pb

    async with connect(settings) as client:
        found: pb.GetStatusResponse = await client.call("GetStatus", pb.GetStatusRequest())
        runs = await client.runs()
    data = {**to_json(found), "live_runs": [to_json(run) for run in runs if not run.ended_at]}
    emit(settings, data, lambda: status_view(found, runs, callings(runs)))


async def why(settings: Settings, run: RunName) -> None:
    """What a run is waiting for: one sentence, then who, in which phase, until when."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render import explanation_view

    async with connect(settings) as client:
        found = await client.explain((await client.find_run(run)).run_id)
    emit(settings, to_json(found), lambda: explanation_view(found))
