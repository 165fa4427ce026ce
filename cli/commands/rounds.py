"""`muster round list | show`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.commands.runs import RunName
from cli.output import emit
from cli.settings import Settings, command
from muster.errors import NotFoundError


def register(app: typer.Typer) -> None:
    command(app, "list", example="muster round list digits")(list_rounds)
    command(app, "show", example="muster round show digits 3")(show)


async def list_rounds(settings: Settings, run: RunName) -> None:
    """The rounds of a run: state, updates, bytes, time, metrics."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render import rounds_table

    async with connect(settings) as client:
        rounds = await client.rounds((await client.find_run(run)).run_id)
    emit(settings, [to_json(each) for each in rounds], lambda: rounds_table(rounds))


async def show(
    settings: Settings,
    run: RunName,
    number: Annotated[
        int | None, typer.Argument(metavar="N", min=1, help="The newest round if left out.")
    ] = None,
) -> None:
    """One round: who took part, with what weight, and how each update was treated."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render import round_view

    async with connect(settings) as client:
        run_id = (await client.find_run(run)).run_id
        if number is None:
            number = max((each.number for each in await client.rounds(run_id)), default=0)
            if number == 0:
                raise NotFoundError(
                    "round.not_found", f"run {run_id!r} has no round yet", fix=f"muster why {run_id}"
                )
        found = await client.round(run_id, number)
    emit(settings, to_json(found), lambda: round_view(found))
