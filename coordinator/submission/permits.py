"""Which tasks this coordinator may import: whoever reaches its port may submit a run, and names a module in it.

A task may be loaded if `coordinator.allow` names it, wherever it is installed, or if its module lies in a task folder
that the operator named. Without either, none may. Where a module lies is found out in the worker, whose path is the
one that counts, and before anything is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from muster.config.settings import CoordinatorConfig
from muster.errors import ConfigError, NotAllowedError
from muster.task.loading import lies_in, load_task
from muster.task.task import Task


def task_args(config: CoordinatorConfig, task: str) -> dict[str, Any]:
    """What a job needs to load the task. Raises `NotAllowedError` "task.not_allowed" if it may not in any case."""
    named = any(fnmatchcase(task, pattern) for pattern in config.allow)
    if not named and not config.task_folders:
        raise _refusal(task, config.allow, ())
    return {
        "task": task,
        # What is allowed by its name may also lie where the coordinator was started.
        "task_folders": [str(folder.resolve()) for folder in config.task_folders or (Path(),)],
        "named": named,
        "allow": list(config.allow),
    }


def load_permitted(args: dict[str, Any]) -> Task:
    """In the worker: the task, if it may be loaded. Raises `NotAllowedError` "task.not_allowed" before any of its
    code has run, and what `load_task` raises."""
    task, folders = args["task"], args["task_folders"]
    if not args["named"]:
        inside = lies_in(task, folders)
        if inside is None:
            raise ConfigError(
                "task.not_found",
                f"task {task!r}: the coordinator has no module {task.partition(':')[0].partition('.')[0]!r}",
                cause=f"its task folders are {', '.join(folders)}",
                fix="correct the name, or start the coordinator with --task-folder FOLDER where it lies",
            )
        if not inside:
            raise _refusal(task, args["allow"], folders)
    return load_task(task, folders, args["options"])


def _refusal(task: str, allow: Sequence[str], folders: Sequence[str]) -> NotAllowedError:
    own = [f"what lies in {folder}" for folder in folders] + [repr(pattern) for pattern in allow]
    return NotAllowedError(
        "task.not_allowed",
        f"this coordinator may not import the task {task!r}",
        cause=f"it may import {', '.join(own) or 'no task at all: neither allow nor task_folders is set'}",
        fix=f"where it runs: muster serve --allow {task!r}, or --task-folder FOLDER if the task lies in one",
    )
