"""`muster model list | pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.runs import RunName
from cli.output import emit
from cli.settings import Settings, command


def register(app: typer.Typer) -> None:
    command(app, "list", example="muster model list digits")(list_models)
    command(app, "pull", example="muster model pull digits@12 -o digits.safetensors")(pull)


async def list_models(settings: Settings, run: RunName) -> None:
    """The versions of a run's model, and which of them can still be pulled; version 0 is the initial one."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render import models_table

    async with connect(settings) as client:
        models = await client.models((await client.find_run(run)).run_id)
    emit(settings, [to_json(each) for each in models], lambda: models_table(models))


async def pull(
    settings: Settings,
    which: Annotated[
        str,
        typer.Argument(
            metavar="RUN[@ROUND]", help="The newest model if no round is given; @0 is the initial one."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="RUN-ROUND.safetensors if left out.")
    ] = None,
) -> None:
    """Fetch a model as plain PyTorch weights: a safetensors file that `model.load_state_dict` takes.

    A download that was interrupted goes on where it stood; the file appears when its digest was checked. One that is
    there already is overwritten only with --yes, or when asked.
    """
    from cli.client import connect
    from cli.json_form import to_json
    from cli.pull import pull_model
    from cli.render import metrics_line, size

    async with connect(settings) as client:
        model, path = await pull_model(client, settings, which, output)
    data = {**to_json(model), "path": str(path)}

    def human() -> str:
        about = f"round {model.round}, {size(path.stat().st_size)}"
        return f"{path}: {about}" + (f", {metrics_line(model.metrics)}" if model.metrics else "")

    emit(settings, data, human)
