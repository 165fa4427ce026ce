"""Version 0 of a run: drawn by its task from a seed, on the coordinator and again by the peers that need it.

The same bytes come out where torch and the kind of CPU are the same and `Task.model` draws from nothing but the global
generators; whether they do, the digest tells. The number of cores does not matter: one thread draws, since
`orthogonal_` and sums over large tensors round otherwise with each number of threads.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from muster.files.hashedfile import BlobInfo
from muster.model.layout import ParameterLayout
from muster.model.modelfile import layout_of, write_initial
from muster.task.defaults import code_of
from muster.task.task import Task

if TYPE_CHECKING:
    from muster.spec.model import ExchangeTable


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A module and the version file that was made of it."""

    model: nn.Module
    layout: ParameterLayout
    info: BlobInfo


def seed_generators(seed: int) -> None:
    """Seeds every global generator that a task may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if _accelerated():
        torch.manual_seed(seed)
    else:  # the same, without a stack trace for devices that are not there, which takes a millisecond
        torch.default_generator.manual_seed(seed)


@cache
def _accelerated() -> bool:
    return torch.accelerator.is_available()


def draw(task: Task, seed: int) -> nn.Module:
    """A new model of the task, its initial values drawn from the seed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seed_generators(seed)
        with code_of(task):
            return task.model()
    finally:
        torch.set_num_threads(threads)


def draw_version(task: Task, seed: int, path: Path, exchange: ExchangeTable | None = None) -> Drawn:
    """Draws the model and writes it to `path` as a model version. Raises as `layout_of` does."""
    return write_drawn(task, draw(task, seed), path, exchange)


def write_drawn(task: Task, model: nn.Module, path: Path, exchange: ExchangeTable | None = None) -> Drawn:
    """Writes what was drawn. Raises as `layout_of` does."""
    layout = layout_of(model, task.buffers, exchange)
    return Drawn(model=model, layout=layout, info=write_initial(path, layout, model))
