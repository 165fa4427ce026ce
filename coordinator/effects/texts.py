"""What is kept of an error of a run's own code."""

from __future__ import annotations

from muster.errors import MusterError
from muster.task.tracebacks import own_frame
from muster.texts import many_lines, one_line


def format_error(error: MusterError) -> str:
    """In one line, with the place in the task that it came from."""
    place = own_frame(error.fields.get("traceback", ""))
    known = place in f"{error.message} {error.cause}"  # "" is in everything
    parts = [error.message, "" if known else f"at {place}", error.cause and f"cause: {error.cause}"]
    return one_line("; ".join(filter(None, [*parts, error.fix and f"fix: {error.fix}"])))


def format_traceback(error: MusterError) -> str:
    """The task's traceback of an error, its end if it is long; "" if there is none."""
    return many_lines(error.fields.get("traceback", ""), keep="end")
