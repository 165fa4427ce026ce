"""`muster task check`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.node import pairs, task_folders
from cli.output import emit, note, warn
from cli.settings import Settings, command

_SPEC_FILE = re.compile(r"\.toml$")


def register(app: typer.Typer) -> None:
    command(app, "check", example="muster task check examples.digits:Digits --data index=0 --data count=4")(
        check
    )


def check(
    settings: Settings,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="'package.module:Class', or a run spec, a TOML file.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Told to the task as site.data; may be given again."),
    ] = None,
    task_folder: Annotated[
        list[Path] | None,
        typer.Option(
            "--task-folder", metavar="FOLDER", help="Searched for the task too; may be given again."
        ),
    ] = None,
) -> None:
    """Try a task out on this machine: load the data, take one step, evaluate, and tell what was seen.

    It runs the task's own code here, as a peer would, with what --data says of this site. Of a run spec its options,
    its [train] table and its seed are taken too.
    """
    from cli.taskcheck import check as check_task

    spec = _spec(task)
    folders = task_folders(settings, task_folder)
    site = pairs(data or [], "--data")
    seen = check_task(spec, data=site, folders=folders, on_step=lambda name: note(settings, f"{name} ..."))
    warn(settings, seen.warnings)
    emit(settings, seen.to_json(), lambda: _view(seen.to_json()))


def _spec(task: str) -> Any:
    from muster.spec.load import load_spec
    from muster.spec.model import RunSpec

    if _SPEC_FILE.search(task):
        return load_spec(Path(task))[0]
    from muster.task.loading import check_name

    check_name(task)
    return RunSpec.model_validate({"task": task, "rounds": 1})


def _view(seen: dict[str, Any]) -> Any:
    from cli.render import table

    made = table("WHAT", "SEEN", last_wraps=False)
    for name, value in seen.items():
        if name != "warnings":
            made.add_row(name.replace("_", " "), _shown(value))
    return made


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)
