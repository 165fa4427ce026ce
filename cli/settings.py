"""Options that every command takes, and how a function becomes a command."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

BROKEN_PIPE = 141  # as a shell reports a process that SIGPIPE ended
TIMEOUT_SECONDS = 10.0  # a coordinator near by answers in milliseconds; a busy disk may take seconds


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was asked of the command as a whole."""

    json: bool = False
    address: str | None = None  # None: from the node config
    config: Path | None = None
    timeout_seconds: float = TIMEOUT_SECONDS
    yes: bool = False
    quiet: bool = False
    no_color: bool = False


_PANEL = "Options of every command"


def _option(kind: Any, *names: str, **details: Any) -> Any:
    return Annotated[kind, typer.Option(*names, rich_help_panel=_PANEL, **details)]


# In the order of help; a value given after the command wins over one given before it.
_COMMON: dict[str, tuple[Any, Any]] = {
    "json": (_option(bool, "--json", help="Data as JSON on standard output, and nothing else there."), False),
    "address": (
        _option(str | None, "--address", metavar="HOST:PORT", help="The coordinator's; else as configured."),
        None,
    ),
    "config": (
        _option(Path | None, "--config", "-c", metavar="FILE", help="A node config read over the others."),
        None,
    ),
    "timeout_seconds": (
        _option(
            float | None,
            "--timeout",
            metavar="SECONDS",
            min=0.1,
            show_default=False,
            help=f"How long to wait for an answer ({TIMEOUT_SECONDS:g}).",
        ),
        None,
    ),
    "yes": (_option(bool, "--yes", "-y", help="Do not ask before a destructive act."), False),
    "quiet": (_option(bool, "--quiet", "-q", help="No progress and no hints."), False),
    "no_color": (_option(bool, "--no-color", help="No colour; NO_COLOR is honoured too."), False),
}

_PARAMETERS = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, (annotation, default) in _COMMON.items()
]


def _collect(context: typer.Context, given: dict[str, Any]) -> Settings:
    """Settings from what stands before the command (in `context.obj`) and after it."""
    values: dict[str, Any] = dict(context.obj or {})
    values.update({name: value for name, value in given.items() if value not in (None, False)})
    return Settings(**values)


def _with_parameters(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> None:
    """Tells typer what `function` takes, whatever its own signature says."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


_CONTEXT = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
_VERSION = inspect.Parameter(
    "version",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--version", "-V", help="The version of Muster, and no more.")],
)


def command(
    app: typer.Typer, name: str, *, example: str, hidden: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as a command whose help begins with `example`.

    Its first parameter is the `Settings`; the rest become arguments and options, to which those of every
    command are added. A coroutine function is run to its end. An integer that it gives back is the exit
    status.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        doc = inspect.cleandoc(function.__doc__ or "")

        def run(context: typer.Context, **values: Any) -> int:
            common = {key: values.pop(key) for key in _COMMON}
            try:
                result = function(_collect(context, common), **values)
                if inspect.iscoroutine(result):
                    result = asyncio.run(result)
                sys.stdout.flush()
            except BrokenPipeError:
                # The reader has gone (`| head`). Python would complain once more on flushing at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return BROKEN_PIPE
            return int(result or 0)

        _with_parameters(run, [_CONTEXT, *own, *_PARAMETERS])
        summary = doc.partition("\n\n")[0].replace("\n", " ")
        app.command(name, help=f"$ {example}\n\n{doc}", short_help=summary, hidden=hidden)(run)
        return function

    return register


def root(app: typer.Typer, *, help: str) -> None:
    """Lets the options of every command stand before the command too."""

    def remember(context: typer.Context, *, version: bool, **given: Any) -> None:
        context.obj = {name: value for name, value in given.items() if value not in (None, False)}
        if version:
            show_version(_collect(context, {}))
            raise typer.Exit
        _help_alone(context)

    _with_parameters(remember, [_CONTEXT, *_PARAMETERS, _VERSION])
    app.callback(help=help, invoke_without_command=True)(remember)


def show_version(settings: Settings) -> None:
    """Prints the version and ends, for `--version`."""
    from muster.runtime.version import muster_version

    if settings.json:
        from cli.json_output import emit_json
        from muster.wire import PROTOCOL_VERSION

        emit_json({"version": muster_version(), "protocol": PROTOCOL_VERSION})
    else:
        print(f"muster {muster_version()}")


def _help_alone(context: typer.Context) -> None:
    """What has commands and got none is asked what it can do: that is an answer, on standard output, exit 0."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def group(app: typer.Typer, name: str, *, help: str) -> typer.Typer:
    """A noun: a command that has commands."""
    nested = typer.Typer(rich_markup_mode=None, help=help)
    nested.callback(help=help, invoke_without_command=True)(_help_alone)
    app.add_typer(nested, name=name, help=help)
    return nested
