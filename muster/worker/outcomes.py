"""What became of a job, as data: it travels from a worker process to its host, and is raised again there.

{"kind": "done", "result"}, {"kind": "error", ...} (a `MusterError`, whole) or {"kind": "failed", "exception",
"message", "traceback"}.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from muster.errors import ERROR_CLASSES, MusterError, TaskError
from muster.texts import DESCRIPTION_CHARS_MAX, many_lines, one_line

Job = Callable[[dict[str, Any], Callable[[float], None]], dict[str, Any]]

MESSAGE_BYTES_MAX = 16 << 20
TRACEBACK_CHARS_MAX = 32 << 10


def attempt(
    jobs: Mapping[str, Job], name: str, args: dict[str, Any], progress: Callable[[float], None]
) -> dict[str, Any]:
    """Runs the job here and gives its outcome, whatever it raises."""
    try:
        return {"kind": "done", "result": _result(jobs, name, args, progress)}
    except MusterError as error:
        return _muster_error(error)
    except BaseException as error:  # SystemExit and MemoryError are a task's failures too
        return failure(error)


def _result(
    jobs: Mapping[str, Job], name: str, args: dict[str, Any], progress: Callable[[float], None]
) -> dict[str, Any]:
    if name not in jobs:
        raise LookupError(f"there is no job {name!r}; there are {', '.join(sorted(jobs))}")
    result = jobs[name](args, progress)
    size = len(json.dumps(result))
    if size > MESSAGE_BYTES_MAX // 2:
        raise ValueError(f"the result of {name!r} takes {size} bytes; tensors belong in files")
    return result


def _muster_error(error: MusterError) -> dict[str, Any]:
    known = next(
        cls.__name__ for cls in type(error).__mro__ if cls.__name__ in ERROR_CLASSES or cls is MusterError
    )
    return {
        "kind": "error",
        "class": known,
        "id": error.id,
        "message": error.message,
        "cause": error.cause,
        "fix": error.fix,
        "fields": error.fields,
    }


def failure(error: BaseException) -> dict[str, Any]:
    """The outcome of a job that raised this, which is no `MusterError`."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next  # how a job is called is nothing to the one who wrote it
    told = "".join(traceback.format_exception(type(error), error, frames))
    return {
        "kind": "failed",
        "exception": type(error).__name__,
        "message": str(error),
        "traceback": told[-TRACEBACK_CHARS_MAX:],
    }


def result_of(outcome: Mapping[str, Any], *, job: str, worker: str, log: str = "") -> dict[str, Any]:
    """The job's result, or what it raised is raised; another exception than `MusterError` as `TaskError`
    "worker.failed" with `fields["traceback"]`. `log` is what the job printed last."""
    if outcome["kind"] == "done":
        found: dict[str, Any] = outcome["result"]
        return found
    if outcome["kind"] == "error":
        raise ERROR_CLASSES.get(outcome["class"], MusterError)(
            one_line(outcome["id"], DESCRIPTION_CHARS_MAX),
            many_lines(outcome["message"]),
            cause=many_lines(outcome["cause"]),
            fix=many_lines(outcome["fix"]),
            **{name: many_lines(text, keep="end") for name, text in outcome["fields"].items()},
        )
    raise TaskError(
        "worker.failed",
        f"job {job!r} of worker {worker!r} raised {one_line(outcome['exception'])}",
        cause=many_lines(f"{outcome['exception']}: {outcome['message']}"),
        fix="mend the task; its traceback is with this error",
        traceback=many_lines(outcome["traceback"], TRACEBACK_CHARS_MAX, keep="end"),
        log=log,
    )
