"""What goes to the terminal: data to standard output, messages and errors to standard error.

With `--json` standard output carries JSON alone: one document, or one a line where a command streams; an
error is a document too, `{"error": {...}}`, so that a script has one place to read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import typer

from cli.json_output import emit_json
from cli.settings import Settings
from muster.errors import MusterError, UsageError
from muster.texts import shown

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WARNED = "run.warned"  # the kind of event that records a warning of a run
PIPE_WIDTH = 1 << 15  # off a terminal a line is as long as it needs to be


def console(settings: Settings, *, stderr: bool = False) -> Console:
    """Colour and width as the terminal has them; neither off a terminal. Whatever is printed on it is cleaned of what
    a terminal obeys: nothing of it is Muster's own, whose colours are rich's."""
    from cli.screen import CleanConsole

    stream = sys.stderr if stderr else sys.stdout
    return CleanConsole(
        stderr=stderr,
        no_color=settings.no_color or None,
        width=None if stream.isatty() else PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def emit(settings: Settings, data: Any, human: Callable[[], RenderableType]) -> None:
    """A command's result: `data` as JSON, or what `human` makes."""
    if settings.json:
        emit_json(data)
    else:
        print_human(settings, human())


def print_human(settings: Settings, made: RenderableType) -> None:
    """To standard output; off a terminal without the blanks that fill up the last column of a table."""
    out = console(settings)
    if out.is_terminal:
        out.print(made)
        return
    with out.capture() as captured:
        out.print(made)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def note(settings: Settings, text: str) -> None:
    """A message apart from the data: progress, what to do next."""
    if not settings.quiet:
        print(shown(text), file=sys.stderr, flush=True)


def warn(settings: Settings, sentences: Iterable[str]) -> None:
    """What goes on and may do badly; with `--json` it belongs into the document instead."""
    for sentence in () if settings.json else sentences:
        print(f"warning: {shown(sentence)}", file=sys.stderr, flush=True)


def confirm(settings: Settings, question: str) -> None:
    """Asks before a destructive act. Raises `UsageError` without a terminal to ask on, `typer.Abort` for a
    no."""
    if settings.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "cli.confirmation_needed",
            question,
            cause="there is no terminal to ask on",
            fix="give --yes to go on without asking",
        )
    # Not `typer.confirm`, which echoes to standard output.
    print(f"{shown(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise typer.Abort


def error_document(error: MusterError) -> dict[str, Any]:
    """An error as JSON data."""
    return {
        "error": {
            "id": error.id,
            "message": error.message,
            "cause": error.cause,
            "fix": error.fix,
            "exit_code": error.exit_code,
            "fields": error.fields,
        }
    }


def print_error(error: MusterError, *, as_json: bool, no_color: bool) -> None:
    """Shows an error on standard error: what, cause, fix."""
    if as_json:
        emit_json(error_document(error))
        return
    from rich.text import Text

    text = Text()
    text.append(f"error[{error.id}]", style="bold red")
    text.append(f": {error.message}")
    for label, value in (("cause", error.cause), ("fix", error.fix)):
        if value:
            continued = value.replace("\n", "\n" + " " * 11)
            text.append(f"\n  {label + ':':<9}", style="bold").append(continued)
    if trace := error.fields.get("traceback"):
        text.append("\n" + trace.rstrip(), style="dim")
    console(Settings(no_color=no_color), stderr=True).print(text, soft_wrap=True)
