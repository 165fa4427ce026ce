"""A whole federation in one process: what users build their own tests on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from muster.spec.model import RunSpec
from muster.task.loading import load_task
from simulator.local import start_local

ROOT = Path(__file__).parents[2]


def spec(**tables: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "examples.digits:Digits",
            "rounds": 3,
            "seed": 1,
            "train": {"lr": 0.1, "momentum": 0.9, "epochs": 2},
            "round": {"peers_min": 3, "quorum": 1.0},
            **tables,
        }
    )


@pytest.mark.timeout(120)
async def test_three_peers_train_digits_and_the_model_is_plain_pytorch(tmp_path: Path) -> None:
    async with start_local(
        tmp_path / "a" / "folder", peers=3, workers=1, allow=["examples.digits:*"], task_folders=[ROOT]
    ) as federation:
        run = await federation.run_to_end(
            spec(compression={"up": "int8"}, evaluate={"on": ["coordinator", "peers"]})
        )
        assert run.state == "FINISHED", run.reason
        assert run.metrics["accuracy"] > 0.85
        assert run.metrics["peers/accuracy"] > 0.85
        assert run.bytes_up < run.bytes_up_dense / 3
        state = await federation.model(run.run_id)
        refused = await federation.run_to_end(spec(task="examples.text:Text"))
        assert refused.state == "RUNNING"  # it waits for somebody who may
        assert (
            "peer-0, peer-1 and peer-2 are set aside: the policy of this peer does not allow"
            in refused.reason
        )
    model = load_task("examples.digits:Digits", [ROOT]).model()
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.timeout(120)
async def test_a_compressed_downlink_moves_the_same_model_with_fewer_bytes(tmp_path: Path) -> None:
    rounds = {"rounds": 5, "train": {"lr": 0.1, "momentum": 0.9, "epochs": 2}}
    async with start_local(
        tmp_path, peers=3, workers=1, allow=["examples.digits:*"], task_folders=[ROOT]
    ) as federation:
        dense = await federation.run_to_end(spec(**rounds))
        small = await federation.run_to_end(spec(**rounds, compression={"up": "int8", "down": "int8"}))
    # Each peer draws the first version; the four that follow come as deltas of a byte a coordinate.
    assert 0 < small.bytes_down < 0.35 * dense.bytes_down
    assert small.metrics["accuracy"] > 0.9 * dense.metrics["accuracy"] > 0.8


@pytest.mark.timeout(120)
async def test_a_delta_that_is_gone_means_only_that_the_version_is_fetched_whole(tmp_path: Path) -> None:
    async with start_local(
        tmp_path, peers=3, workers=1, allow=["examples.digits:*"], task_folders=[ROOT]
    ) as federation:
        store = federation._running.coordinator.store

        async def gone(run_id: str, names: Sequence[str], digest: str) -> None:
            return None

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "model_by_state", gone)
            run = await federation.run_to_end(spec(compression={"down": "int8"}))
    assert run.state == "FINISHED", run.reason
    # A model to each peer for each update of theirs, but for the first, which they draw.
    assert run.bytes_down > 0.9 * 2 / 3 * run.bytes_up_dense


@pytest.mark.timeout(120)
async def test_differences_go_with_a_robust_rule_and_with_peers_that_sit_out(tmp_path: Path) -> None:
    table = {
        "rounds": 8,
        "sampling": {"fraction": 0.75},
        "aggregation": {"rule": "trimmed-mean", "pre": ["arc", "nnm"], "faults": 1},
        "compression": {"up": "topk:0.3", "feedback": "econtrol"},
        "round": {"peers_min": 4, "quorum": 1.0},
    }
    async with start_local(
        tmp_path, peers=4, workers=1, allow=["examples.digits:*"], task_folders=[ROOT]
    ) as federation:
        run = await federation.run_to_end(spec(**table))
    assert run.state == "FINISHED", run.reason
    assert run.metrics["accuracy"] > 0.85


@pytest.mark.timeout(120)
async def test_compositions_plans_and_common_masks_train_behind_a_robust_rule(tmp_path: Path) -> None:
    """The model is small: of each update some 700 bytes are its manifest."""
    settings = (
        ("topk:0.05+int8+rice|topk:0.015+int8+rice|topk:0.2+int4+rice", "ef14", 14),
        ("fedzip:0.1", "econtrol", 14),
        ("randk:0.3:common:unscaled+e3m0+zstd", "ef21", 3),  # its first update is dense
    )
    table = {
        "rounds": 5,
        "task_options": {"model": "mlp"},
        "train": {"lr": 0.1, "momentum": 0.9, "epochs": 2},
        "aggregation": {"rule": "trimmed-mean", "pre": ["arc", "nnm"], "faults": 0.2},
    }
    async with start_local(
        tmp_path, peers=3, workers=1, allow=["examples.digits:*"], task_folders=[ROOT]
    ) as federation:
        for up, feedback, smaller in settings:
            compression = {"up": up, "feedback": feedback, "down": "topk:0.2+int8"}
            run = await federation.run_to_end(spec(**table, compression=compression))
            assert run.state == "FINISHED", run.reason
            assert run.metrics["accuracy"] > 0.85
            assert run.bytes_up_dense > smaller * run.bytes_up
            assert run.bytes_down < 0.5 * run.bytes_up_dense  # as many models go down as updates go up
        replayed = {"up": "topk:0.05+int8", "feedback": "ef14", "down": "replay"}
        table |= {"aggregation": {"rule": "caf", "pre": ["arc"], "faults": 0.2}, "compression": replayed}
        run = await federation.run_to_end(spec(**table))
        assert run.state == "FINISHED", run.reason
        assert run.metrics["accuracy"] > 0.85
        # To each peer, for each round but the first, what all three have sent.
        assert run.bytes_down < 1.1 * 3 * 4 / 5 * run.bytes_up


@pytest.mark.timeout(120)
async def test_one_liar_in_four_is_held_off_by_a_robust_rule(tmp_path: Path) -> None:
    liar = {3: {"name": "sign-flip", "options": {"scale": 10}}}
    robust = {"rule": "trimmed-mean", "pre": ["arc", "nnm"], "faults": 1}
    async with start_local(
        tmp_path, peers=4, allow=["examples.digits:*"], task_folders=[ROOT], attacks=liar
    ) as federation:
        everybody = {"peers_min": 4, "quorum": 1.0}
        mean = await federation.run_to_end(spec(rounds=4, round=everybody, aggregation={"rule": "mean"}))
        held = await federation.run_to_end(spec(rounds=4, round=everybody, aggregation=robust))
    assert mean.metrics["accuracy"] < 0.5
    assert held.metrics["accuracy"] > 0.85
