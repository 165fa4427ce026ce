"""`muster round list | show | replay`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands.runs import RunName
from cli.output import emit
from cli.settings import Settings, command
from muster.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from cli.client import Client


def register(app: typer.Typer) -> None:
    command(app, "list", example="muster round list digits")(list_rounds)
    command(app, "show", example="muster round show digits 3")(show)
    command(app, "replay", example="muster round replay digits --rule median")(replay)


async def list_rounds(settings: Settings, run: RunName) -> None:
    """The rounds of a run: state, updates, bytes, time, metrics."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render_rounds import rounds_table

    async with connect(settings) as client:
        rounds = await client.rounds((await client.find_run(run)).run_id)
    emit(settings, [to_json(each) for each in rounds], lambda: rounds_table(rounds))


async def show(
    settings: Settings,
    run: RunName,
    number: Annotated[
        int | None, typer.Argument(metavar="N", min=1, help="The newest round if left out.")
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="A line for each update: its figures, what they mean, how it was treated."
        ),
    ] = False,
) -> None:
    """One round: who took part, with what weight, and how each update was treated."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render_rounds import round_explained, round_view

    async with connect(settings) as client:
        run_id = (await client.find_run(run)).run_id
        found = await client.round(run_id, number or await _newest(client, run_id))
    emit(settings, to_json(found), lambda: round_explained(found) if explain else round_view(found))


async def replay(
    settings: Settings,
    run: RunName,
    number: Annotated[
        int | None, typer.Argument(metavar="N", min=1, help="The newest committed round if left out.")
    ] = None,
    *,
    rule: Annotated[
        str | None, typer.Option("--rule", metavar="NAME", help="Instead of the run's own.")
    ] = None,
    pre: Annotated[
        str | None,
        typer.Option(
            "--pre",
            metavar="NAMES",
            help="Pre-rules instead of the run's own: arc,nnm; '' is none, and so is another rule without --pre.",
        ),
    ] = None,
    faults: Annotated[
        float | None, typer.Option("--faults", help="f, or a share of the cohort, instead of the run's own.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the rule; may be repeated."),
    ] = None,
    trusted: Annotated[
        str | None, typer.Option("--trusted", metavar="PEER", help="For a rule that trusts one.")
    ] = None,
) -> None:
    """Aggregate a round's stored updates once more, with another rule, and compare; nothing is changed.

    With the run's own rule it must make the committed model again, to the byte. Updates of a run's newest round are
    kept; the coordinator's updates_keep_rounds keeps those of more.
    """
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render_rounds import replay_view

    given = {"rule": rule, "faults": faults, "trusted_peer": trusted}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if pre is not None:
        changes["pre"] = [name for name in pre.split(",") if name]
    if option:
        changes["options"] = dict(map(_option, option))
    async with connect(settings) as client:
        run_id = (await client.find_run(run)).run_id
        number = number or await _newest(client, run_id, committed=True)
        found = await client.replay(run_id, number, changes)
    emit(settings, to_json(found), lambda: replay_view(found))


async def _newest(client: Client, run_id: str, *, committed: bool = False) -> int:
    rounds = await client.rounds(run_id)
    numbers = [each.number for each in rounds if not committed or each.state == "COMMITTED"]
    if not numbers:
        what = "committed round" if committed and rounds else "round"
        raise NotFoundError(
            "round.not_found", f"run {run_id!r} has no {what} yet", fix=f"muster why {run_id}"
        )
    return max(numbers)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UsageError("usage.bad_option", f"an option is KEY=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
