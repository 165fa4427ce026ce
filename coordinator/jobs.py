"""What the coordinator asks of a task, in a worker process: its code may crash or hang there and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator.permits import load_permitted
from muster.defaults import code_of
from muster.initial import draw, draw_version
from muster.modelfile import ModelFile, load_into
from muster.seeds import initial_seed
from muster.sources import source_digest
from muster.task import Site


def _site(args: dict[str, Any]) -> Site:
    return Site(name="coordinator", options=args["options"], seed=args["seed"], coordinator=True)


def check_task(args: dict[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:  # noqa: ARG001  # one step
    """Raises if the task may not be loaded here, or cannot be."""
    load_permitted(args)
    return {}


def init_model(args: dict[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:  # noqa: ARG001  # one step
    """Writes the initial model, drawn from the run's seed, to `args["path"]`."""
    task = load_permitted(args)
    drawn = draw_version(task, initial_seed(args["seed"]), Path(args["path"]))
    return {
        "digest": drawn.info.digest,
        "size_bytes": drawn.info.size_bytes,
        "layout_digest": drawn.layout.digest,
        "source_digest": source_digest(args["task"], args["task_folders"]),
    }


def evaluate(args: dict[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:  # noqa: ARG001  # one step
    """Metrics of a model version on the coordinator's own hold-out; empty if the task has none here."""
    task = load_permitted(args)
    # Seeded as on the peers: what a model draws and no version holds must be the same for every version.
    model = draw(task, initial_seed(args["seed"]))
    file = ModelFile(Path(args["path"]))
    try:
        load_into(model, file)
    finally:
        file.close()
    model.eval()
    with code_of(task):
        metrics = {name: float(value) for name, value in task.evaluate(model, _site(args)).items()}
    return {"metrics": metrics, "source_digest": source_digest(args["task"], args["task_folders"])}


JOBS = {"check_task": check_task, "init_model": init_model, "evaluate": evaluate}
