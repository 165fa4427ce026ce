"""What a training loop gave back: the one place where it is looked at before anything is made of it."""

from __future__ import annotations

from dataclasses import replace

from muster.errors import TaskError
from muster.task.metrics import EXAMPLES_MAX, as_number
from muster.task.task import FitReport

_SHOWN = 60


def checked(report: object, who: str) -> FitReport:
    """The report that `who` ("my.task:Task.fit") gave, its counts as Python's integers, whichever library's they were.

    Raises `TaskError` "task.bad_report" naming what is no report, or no count.
    """
    if not isinstance(report, FitReport):
        raise _bad(f"{who} gave {_shown(report)}, which is no FitReport")
    return replace(
        report,
        examples=_count("examples", report.examples, who),
        steps=_count("steps", report.steps, who),
    )


def _count(name: str, value: object, who: str) -> int:
    number = as_number(value)
    if number is None or not 0 <= number <= EXAMPLES_MAX or number != int(number):
        raise _bad(f"{who} gave {name}={_shown(value)}, which is no count")
    return int(number)


def _shown(value: object) -> str:
    try:
        told = repr(value)
    except Exception:  # the user's own __repr__, while the failure is reported
        return f"a {type(value).__name__}"
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}..."


def _bad(message: str) -> TaskError:
    return TaskError(
        "task.bad_report",
        message,
        cause="it has to give a FitReport whose examples and steps are whole numbers of at least 0, or None",
        fix="return muster.FitReport(examples=..., steps=...)",
    )
