"""One site whose data file is missing: the others go on without it, and people learn where and why."""

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


class Register(muster.Task):
    def model(self):
        return nn.Linear(8, 2)

    def train_data(self, site):
        with open(site.data["register"]) as file:
            count = len(file.read())
        return TensorDataset(torch.ones(count, 8), torch.zeros(count, dtype=torch.long))
"""


def spec(**tables: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "register_task:Register",
            "rounds": 3,
            "aggregation": {"rule": "mean"},
            "evaluate": {"every": 0},
            "round": {"peers_min": 2},
            **tables,
        }
    )


@pytest.mark.timeout(120)
async def test_a_site_without_its_file_costs_itself_only_and_comes_back_once_mended(tmp_path: Path) -> None:
    task = tmp_path / "register_task.py"
    task.write_text(TASK)
    there, missing = tmp_path / "there.txt", tmp_path / "missing.txt"
    there.write_text("x" * 16)
    data = [{"register": str(there)}, {"register": str(missing)}]
    folders: dict[str, Any] = {"task_folders": [tmp_path], "data": data}
    async with start_local(tmp_path, peers=2, allow=["register_task:*"], **folders) as federation:
        run = await federation.run_to_end(spec())
        assert (run.state, run.committed, run.skipped) == ("FINISHED", 3, 0)
        line = TASK.splitlines().index('        with open(site.data["register"]) as file:') + 1
        assert run.reason.startswith("peer-1 is set aside: train_data raised FileNotFoundError")
        assert f"{task}, line {line}, in train_data" in run.reason
        asked = [each.peer_id for each in (await federation.round(run.run_id, 3)).assignments]
        assert asked == ["peer-0"]

        strict = {"peers_min": 2, "quorum": 1.0, "skips_max": 1}
        paused = await federation.run_to_end(spec(round=strict))
        assert (paused.state, paused.committed) == ("PAUSED", 0)
        assert "No such file or directory" in paused.reason
        assert f"mend that, then: muster run resume {paused.run_id}" in paused.reason
        missing.write_text("x" * 16)
        await federation.resume(paused.run_id)
        run = await federation.settled(paused.run_id)
        assert (run.state, run.reason, run.committed) == ("FINISHED", "all 3 rounds are committed", 3)
