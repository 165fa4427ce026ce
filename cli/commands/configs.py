"""`muster config show | validate | schema`."""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.json_output import emit_json
from cli.node import node_config
from cli.output import emit, warn
from cli.settings import Settings, command


class Schema(StrEnum):
    RUN = "run"
    NODE = "node"


def register(app: typer.Typer) -> None:
    command(app, "show", example="muster config show --origin")(show)
    command(app, "validate", example="muster config validate run.toml")(validate)
    command(app, "schema", example="muster config schema run > run.schema.json")(schema)


def show(
    settings: Settings,
    origin: Annotated[bool, typer.Option("--origin", help="Also where each value was said.")] = False,
) -> None:
    """The settings of this machine, all layers merged: files, environment, flags."""
    from cli.render import table

    rows = list(node_config(settings).rows())
    data: dict[str, Any] = {
        key: {"value": value, "origin": place} if origin else value for key, value, place in rows
    }

    def human() -> Any:
        made = table("KEY", "VALUE", *(["SAID IN"] if origin else []), last_wraps=False)
        for key, value, place in rows:
            made.add_row(key, "-" if value is None else str(value), *([place] if origin else []))
        return made

    emit(settings, data, human)


def validate(
    settings: Settings,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A run spec, a node config or a policy.")],
    task_folder: Annotated[
        list[Path] | None,
        typer.Option(
            "--task-folder", metavar="FOLDER", help="Searched for a spec's task too; may be given again."
        ),
    ] = None,
    no_task: Annotated[
        bool, typer.Option("--no-task", help="The spec's task is not on this machine: leave it out.")
    ] = False,
) -> None:
    """Check a file and tell all its mistakes at once, with their lines.

    What kind of file it is shows in its tables: [[allow]] makes a policy, [coordinator] or [peer] a node config.
    Of a run spec it is also checked that its methods go together, as a coordinator does that has the same packages, and
    that its task is there: it is looked for in installed packages, in the task folders of the node config and here.
    """
    kind, digest, warnings, task = _check(file)
    if task and not no_task:
        from cli.node import task_folders
        from muster.task.loading import load_task

        load_task(task, task_folders(settings, task_folder))
    data = {"path": str(file), "kind": kind, "valid": True, "digest": digest, "warnings": warnings}
    warn(settings, warnings)
    emit(settings, data, lambda: f"{file}: a valid {kind}" + (f", digest {digest}" if digest else ""))


def _check(file: Path) -> tuple[str, str | None, list[str], str]:
    """What the file is, and of a run spec the digest, the warnings and the task. Raises `ConfigError`."""
    from muster.config.settings import check_config_file
    from muster.spec.load import load_spec, read_toml

    try:
        tables = set(tomllib.loads(read_toml(file, "config", "file")))
    except tomllib.TOMLDecodeError:
        tables = set[str]()  # the spec's own reader tells the line
    if "allow" in tables:
        from peer.work.policy import load_policy

        load_policy(file)
        return "policy", None, [], ""
    if tables & {"coordinator", "peer"}:
        check_config_file(file)
        return "node config", None, [], ""
    spec, text = load_spec(file)
    from coordinator.submission.checks import (  # imports torch, for which no other file has to wait
        check_spec,
        warnings,
    )

    check_spec(spec, text, str(file))
    return "run spec", spec.digest, list(warnings(spec)), spec.task


def schema(
    _settings: Settings,
    kind: Annotated[Schema, typer.Argument(help="Of run specs or of node configs.")] = Schema.RUN,
) -> None:
    """The JSON Schema of run specs or of node configs, for editors that complete and check."""
    if kind is Schema.RUN:
        from muster.spec.load import spec_schema

        emit_json(spec_schema())
    else:
        from muster.config.settings import config_schema

        emit_json(config_schema())
