"""A progress bar on standard error, if there is a terminal and --quiet is not given."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from cli.output import console
from cli.settings import Settings


@contextmanager
def progress_bar(
    settings: Settings, title: str, *, bytes_unit: bool = False
) -> Generator[Callable[[int, int], None]]:
    """Gives `show(done, total)`, to be called as often as there is news."""
    screen = console(settings, stderr=True)
    if settings.quiet or not screen.is_terminal:
        yield lambda _done, _total: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = (DownloadColumn(), TransferSpeedColumn()) if bytes_unit else (MofNCompleteColumn(),)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeRemainingColumn(),
        console=screen,
        transient=True,
    ) as drawn:
        task = drawn.add_task(title, total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)
