"""A run is of the code and the data that there are when it begins, wherever a daemon has been up since before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muster.spec.model import RunSpec
from simulator.local import start_local

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Edited(muster.Task):
    def model(self):
        return nn.Linear(8, {width})

    def train_data(self, site):
        with open(site.data["register"]) as file:
            count = len(file.read().split())
        return TensorDataset(torch.ones(count, 8), torch.zeros(count, dtype=torch.long))

    def evaluate(self, model, site):
        return {{"code": {code}, "width": model.out_features}}
"""
SPEC = {
    "task": "edited_task:Edited",
    "rounds": 1,
    "round": {"peers_min": 1},
    "aggregation": {"rule": "mean"},
    "evaluate": {"on": ["coordinator", "peers"]},
}


@pytest.mark.timeout(120)
async def test_an_edited_task_and_data_that_grew_are_seen_by_the_next_run(tmp_path: Path) -> None:
    task, register = tmp_path / "edited_task.py", tmp_path / "register.txt"
    folders: dict[str, Any] = {"task_folders": [tmp_path], "data": [{"register": str(register)}]}
    async with start_local(tmp_path, peers=1, allow=["edited_task:*"], **folders) as federation:
        for code, width in ((1, 2), (2, 6)):
            task.write_text(TASK.format(code=code, width=width))
            register.write_text("case " * 8 * code)
            run = await federation.run_to_end(RunSpec.model_validate(SPEC))
            assert run.state == "FINISHED", run.reason
            assert run.metrics == {
                "code": code, "peers/code": code, "width": width, "peers/width": width
            }  # fmt: skip
            trained = (await federation.round(run.run_id, 1)).assignments
            assert [each.examples for each in trained if each.work.role == "train"] == [8 * code]


CRASHES = """
import os
import signal
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Crashes(muster.Task):
    def model(self):
        return nn.Linear(2, 2)

    def train_data(self, site):
        return TensorDataset(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))

    def fit(self, model, context):
        here = Path(__file__)
        if "edited" not in here.read_text().splitlines()[-1]:
            here.write_text(here.read_text() + "# edited")
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.timeout(120)
async def test_a_worker_that_comes_back_with_other_code_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "crashing_task.py").write_text(CRASHES)
    spec = {**SPEC, "task": "crashing_task:Crashes", "evaluate": {"every": 0}}
    async with start_local(
        tmp_path, peers=1, allow=["crashing_task:*"], task_folders=[tmp_path]
    ) as federation:
        run = await federation.run_to_end(RunSpec.model_validate(spec))
        assert run.state == "FINISHED", run.reason
        (warning,) = await federation.warnings(run.run_id)
        assert "peer-0 works with other source code" in warning.reason
        *_, last = (await federation.round(run.run_id, 1)).assignments
        assert last.source_digest != run.source_digest
        assert {len(last.source_digest), len(run.source_digest)} == {64}
