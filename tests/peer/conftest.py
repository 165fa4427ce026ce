"""A task of the tests' own, as a module in a folder, and models and orders for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOY = '''
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Toy(muster.Task):
    """Two Gaussian blobs. `site.data` may name a file whose word makes training misbehave."""

    def model(self):
        width = self.options.get("width", 4)
        return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.1), nn.Linear(width, 2))

    def train_data(self, site):
        count = site.data.get("count", 41)
        generator = torch.Generator().manual_seed(site.data.get("index", 0))
        targets = torch.arange(count) % 2
        inputs = torch.randn(count, 3, generator=generator) + 2.0 * targets[:, None]
        return TensorDataset(inputs * site.data.get("scale", 1.0), targets)

    def test_data(self, site):
        return self.train_data(site)

    def fit(self, model, context):
        mischief = Path(context.site.data.get("mischief", "/nowhere"))
        word = mischief.read_text() if mischief.exists() else ""
        if word == "raise":
            raise RuntimeError("no such luck")
        if word == "kill":
            mischief.unlink()
            os.kill(os.getpid(), 9)
        if word == "loop":
            Path(context.site.data["mischief"] + ".pid").write_text(str(os.getpid()))
            while True:
                time.sleep(0.01)
        if word == "own":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 1.0
            return muster.FitReport(examples=5, steps=1, metrics={"own": 2.0})
        if word == "bad report":
            return {"examples": 5}
        return None
'''


@pytest.fixture
def toy_folder(tmp_path: Path) -> Path:
    """A folder with the module `toy_task`, whose class `Toy` is a task."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "toy_task.py").write_text(TOY)
    return folder


@pytest.fixture
def initial_model(tmp_path: Path, toy_folder: Path) -> Callable[..., tuple[Path, str, str]]:
    """Writes an initial model of `Toy`: its path, digest and layout digest."""

    def make(**options: Any) -> tuple[Path, str, str]:
        import torch

        from muster.modelfile import layout_of, write_initial
        from muster.tasks import load_task

        task = load_task("toy_task:Toy", [toy_folder], options)
        torch.manual_seed(1)
        model = task.model()
        layout = layout_of(model)
        path = tmp_path / f"initial-{len(list(tmp_path.glob('initial-*')))}.safetensors"
        return path, write_initial(path, layout, model).digest, layout.digest

    return make
