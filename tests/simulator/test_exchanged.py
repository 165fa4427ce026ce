"""What of a model goes over the wire, by the bytes that a run counts: frozen tensors stay at home."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muster.spec.model import RunSpec
from simulator.local import start_local

TASK = """
import os

import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster

WIDE, RANK = 1_000_000, 50_000


class Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Parameter(torch.ones(WIDE), requires_grad=False)
        self.adapter = nn.Parameter(torch.zeros(RANK))
        with torch.no_grad():  # no two drawings are the same
            self.adapter[0] = int.from_bytes(os.urandom(4), "little") / 2**32


class Case(muster.Task):
    def model(self):
        return Adapter()

    def train_data(self, site):
        return TensorDataset(torch.ones(4, 1), torch.zeros(4))

    def loss(self, model, batch):
        return (model.adapter[1:] - model.backbone[0]).square().mean()

    def evaluate(self, model, site):
        return {}
"""

DENSE = 4 * 1_050_000
PEERS, ROUNDS = 2, 3


def _spec(**tables: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "adapter_task:Case",
            "rounds": ROUNDS,
            "aggregation": {"rule": "mean"},
            "round": {"peers_min": PEERS, "quorum": 1.0},
            "evaluate": {"every": 0},
            **tables,
        }
    )


@pytest.mark.parametrize("tensors", ["all", "trainable"])
async def test_only_the_first_version_brings_what_is_frozen_and_only_where_it_is_asked_for(
    tmp_path: Path, tensors: str
) -> None:
    (tmp_path / "adapter_task.py").write_text(TASK)
    async with start_local(
        tmp_path, peers=PEERS, allow=["adapter_task:Case"], task_folders=[tmp_path], workers=1
    ) as federation:
        run = await federation.run_to_end(_spec(exchange={"tensors": tensors}))
        assert run.state == "FINISHED", run.reason
        model = await federation.model(run.run_id)
    assert model["backbone"].eq(1.0).all()  # the version is whole
    assert model["adapter"][1:].gt(0.0).all()
    each = PEERS * ROUNDS
    assert run.bytes_up < each * 0.06 * DENSE
    moved, frozen = each * 0.06 * DENSE, PEERS * 4 * 1_000_000
    if tensors == "all":
        assert frozen < run.bytes_down < frozen + moved
    else:
        assert run.bytes_down < moved
