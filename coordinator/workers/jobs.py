"""What the coordinator asks of a task, in a worker process: its code may crash or hang there and nowhere else.

A task, its test data and its module are kept from job to job of a run; the module is filled anew for each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coordinator.submission.permits import load_permitted
from muster.model.initial import draw, seed_generators, write_drawn
from muster.model.modelfile import ModelFile, check_takes, check_unchanged, layout_of, load_into
from muster.seeds import derive_seed, initial_seed
from muster.spec.model import ExchangeTable
from muster.task import trial
from muster.task.copies import copied, spared
from muster.task.defaults import code_of
from muster.task.loading import keep_data
from muster.task.metrics import measured
from muster.task.sources import source_digest
from muster.task.task import Site, Task

TASKS_MAX = 4  # whose data are kept in memory at once
BATCH_SIZE = 32  # of the trial, on the coordinator's own data

Progress = Callable[[float], None]

_tasks: OrderedDict[str, Task] = OrderedDict()
_ready: set[str] = set()
_modules: dict[str, nn.Module] = {}  # of the task that was at work last
_drawn: dict[str, nn.Module] = {}  # of the run that was submitted last, as drawn


def start_over() -> None:
    """As in a process that has just started."""
    for held in (_tasks, _ready, _modules, _drawn):
        held.clear()


def _site(args: dict[str, Any]) -> Site:
    return Site(name="coordinator", options=args["options"], seed=args["seed"], coordinator=True)


def _exchange(args: dict[str, Any]) -> ExchangeTable:
    return ExchangeTable.model_validate(args.get("exchange", {}))


def _key(args: dict[str, Any]) -> str:
    return repr([args[name] for name in ("task", "task_folders", "options", "seed")])


def _task(args: dict[str, Any]) -> Task:
    key = _key(args)
    task = _tasks.pop(key, None)
    if task is None:
        _ready.discard(key)
        task = load_permitted(args)
        keep_data(task)
    _tasks[key] = task
    while len(_tasks) > TASKS_MAX:
        _tasks.popitem(last=False)
    return task


def check_task(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # one step
    """Raises if the task may not be loaded here, or cannot be."""
    _task(args)
    return {}


def check_model(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # one step
    """Draws the initial model, which stays for `init_model`.

    Raises if it cannot be sent or trained: `ConfigError` "model.nothing_trained", "model.unsupported",
    "model.not_taken" and others of the layout."""
    _drawn.clear()
    task = _task(args)
    model = draw(task, initial_seed(args["seed"]))
    layout_of(model, task.buffers, _exchange(args))
    check_takes(model)
    _drawn[_key(args)] = model
    return {}


def init_model(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # one step
    """Writes the initial model, drawn from the run's seed, to `args["path"]`."""
    task, key = _task(args), _key(args)
    _modules.clear()  # never two at once
    model = _drawn.pop(key, None)
    if model is None:
        model = draw(task, initial_seed(args["seed"]))
        check_takes(model)
    drawn = write_drawn(task, model, Path(args["path"]), _exchange(args))
    _modules[key] = model
    return {
        "digest": drawn.info.digest,
        "size_bytes": drawn.info.size_bytes,
        "layout_digest": drawn.layout.digest,
        "source_digest": source_digest(args["task"], args["task_folders"]),
    }


def is_ready(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # one step
    return {"ready": _key(args) in _ready and _key(args) in _tasks}


def get_ready(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # one step
    """Loads the coordinator's own test data, if it has some, and, where it is told the algorithm, tries training and
    evaluation out on a batch of them and on the version in `args["path"]`; raises what `muster.task.trial` does. Where
    they cannot be loaded, evaluation will tell."""
    task = _task(args)
    _ready.add(_key(args))
    with code_of(task):
        seed_generators(derive_seed(args["seed"], "data", "coordinator"))
        try:
            data = task.test_data(_site(args))
        except Exception:  # it may need what only a site has; whoever evaluates on it is told
            return {}
    if not (args["algorithm"] and trial.has_examples(data)):
        return {}
    double, model, _ = spared(task, _model(task, args))
    if model is _modules[_key(args)]:
        _modules.clear()  # it could not be copied, and the trial may leave something in it
    base = ModelFile(Path(args["path"]))
    with closing(base), code_of(task):
        if trial.tries_loss(task, args["algorithm"]):
            batch = trial.first_batch(data, BATCH_SIZE)
            trial.try_loss(double, model, batch, algorithm=args["algorithm"])
            check_unchanged(model, base)
        trial.try_evaluation(double, model, data)
    return {}


def evaluate(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # one step
    """Metrics of a model version on the coordinator's own hold-out; empty if the task has none here."""
    torch.set_num_threads(args.get("threads") or torch.get_num_threads())
    task = _task(args)
    model = _model(task, args)
    scored = copied(model)
    if scored is None:
        scored = _modules.pop(_key(args))
    scored.eval()
    with code_of(task):
        found = measured(task.evaluate(scored, _site(args)), f"{args['task']}.evaluate")
    return {
        "metrics": found.values,
        "warnings": found.warnings,
        "source_digest": source_digest(args["task"], args["task_folders"]),
    }


def _model(task: Task, args: dict[str, Any]) -> nn.Module:
    """Holding the version in `args["path"]`."""
    key = _key(args)
    if key not in _modules:
        _modules.clear()
        # Seeded as on the peers: what a model draws and no version holds must be the same for every version.
        _modules[key] = draw(task, initial_seed(args["seed"]))
    file = ModelFile(Path(args["path"]))
    with closing(file):
        load_into(_modules[key], file)
    return _modules[key]


JOBS = {
    "check_task": check_task,
    "check_model": check_model,
    "init_model": init_model,
    "is_ready": is_ready,
    "get_ready": get_ready,
    "evaluate": evaluate,
}
