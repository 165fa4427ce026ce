"""Masks that cancel among three peers, over real processes: each update looks like noise, the sum is the plain one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coordinator.submission.checks import check_spec
from exchange import PayloadReader
from muster.errors import ConfigError, MusterError
from muster.model.layout import PARAMS
from muster.model.modelfile import ModelFile
from muster.spec.model import RunSpec
from simulator import ProcessFederation
from tests.plugins.quadratics import SOURCE

NAMES = ("peer-0", "peer-1", "peer-2")
ROUNDS = 3
SCALE = 100.0
SECRET = "only these three peers know this"
MASKED = {"mechanism": {"name": "masks", "options": {"peers": list(NAMES), "scale": SCALE}}}


def _spec(**tables: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "quadratics_task:Quadratics",
            "rounds": ROUNDS,
            "task_options": {"peers": len(NAMES)},
            "train": {"lr": 0.02, "steps": 5},
            "aggregation": {"rule": "mean", "weights": "uniform"},
            "exchange": {"buffers": "coordinator"},
            "round": {"quorum": 1.0, "peers_min": len(NAMES), "deadline_seconds": 20},
            "evaluate": {"every": 0},
            **tables,
        }
    )


class Stored:
    """What the coordinator has on its disk: updates by run, round and sender, versions by digest."""

    def __init__(self, folder: Path) -> None:
        self._paths = [path for path in folder.glob("coordinator/blobs/??/*") if path.is_file()]

    def updates(self, run_id: str, number: int) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for path in self._paths:
            try:
                reader = PayloadReader(path)
            except MusterError:  # a version
                continue
            with closing(reader):
                if (reader.manifest.run_id, reader.manifest.round) == (run_id, number):
                    name = next(name for name in NAMES if f".{name}." in f".{reader.manifest.assignment_id}.")
                    found[name] = torch.frombuffer(bytearray(reader.chunk(PARAMS, 0)), dtype=torch.float32)
        return found

    def version(self, digest: str) -> Tensor:
        with closing(ModelFile(next(path for path in self._paths if path.name == digest))) as file:
            return file.vector.clone()


async def test_each_update_looks_like_noise_the_sum_is_the_plain_one_and_without_one_there_is_none(
    tmp_path: Path, installed_methods: Mapping[str, str]
) -> None:
    (tmp_path / "quadratics_task.py").write_text(SOURCE)
    folder = tmp_path / "federation"
    settings = {"updates_keep_rounds": 100}
    async with ProcessFederation(folder, task_folders=[tmp_path], coordinator=settings) as federation:
        await federation.start_coordinator(env=installed_methods)
        dies = f"peer.trained:kill@{2 * ROUNDS + 2}"  # in the second round of the third run
        for name in NAMES:
            env = {**installed_methods, **({"MUSTER_FAILPOINT": dies} if name == NAMES[2] else {})}
            federation.start_peer(name, data=_data(name), env=env)
        plain = await federation.run_to_end(_spec())
        masked = await federation.run_to_end(_spec(**MASKED))
        assert (plain.state, masked.state) == ("FINISHED", "FINISHED"), masked.reason
        stored = Stored(folder)
        _check_noise(stored, plain.run_id, masked.run_id)
        wanted = stored.version(plain.model_digest)
        torch.testing.assert_close(stored.version(masked.model_digest), wanted, atol=1e-4, rtol=0)

        run_id = await federation.submit(_spec(**MASKED))
        await federation.exited(NAMES[2])
        async for run in federation.watch(run_id):
            if run.rounds_skipped:
                break
        first, second = sorted(await federation.rounds(run_id), key=lambda round: round.number)[:2]
        assert (first.state, second.state) == ("COMMITTED", "SKIPPED")
        assert (await federation.run(run_id)).model_digest == first.model_digest
        federation.start_peer(NAMES[2], data=_data(NAMES[2]), env=installed_methods)
        ended = [run async for run in federation.watch(run_id)][-1]
        assert (ended.state, ended.rounds_committed) == ("FINISHED", ROUNDS), ended.reason
        torch.testing.assert_close(Stored(folder).version(ended.model_digest), wanted, atol=1e-4, rtol=0)


def _data(name: str) -> dict[str, Any]:
    return {"index": NAMES.index(name), "mask_secret": SECRET}


def _check_noise(stored: Stored, plain: str, masked: str) -> None:
    """Of the first round, which both runs begin alike."""
    shown, wanted = stored.updates(masked, 1), stored.updates(plain, 1)
    assert sorted(shown) == sorted(wanted) == list(NAMES)
    for name in NAMES:
        # Two masks, uniform in +-SCALE: their standard deviation is SCALE sqrt(2 / 3), the update's is below 3.
        deviation = float((shown[name] - wanted[name]).std())
        assert 0.6 < deviation / (SCALE * math.sqrt(2 / 3)) < 1.5
        assert float(wanted[name].std()) < 3
    torch.testing.assert_close(sum(shown.values()), sum(wanted.values()), atol=1e-4, rtol=0)
    later = stored.updates(masked, ROUNDS)
    assert all(float((shown[name] - later[name]).std()) > 0.3 * SCALE for name in NAMES)  # other masks


def test_what_masks_require_is_told_with_what_to_set(installed_methods: Mapping[str, str]) -> None:
    check_spec(_spec(**MASKED))
    for tables, told, fix in (
        (
            {"aggregation": {"rule": "median", "faults": 0}},
            "masks shows nothing but the sum",
            'set aggregation.rule = "mean"',
        ),
        (
            {"aggregation": {"rule": "mean", "weights": "examples"}},
            "aggregation.weights uniform",
            'set aggregation.weights = "uniform"',
        ),
        (
            {"compression": {"up": "topk:0.1", "feedback": "ef14"}},
            "compression.up identity",
            'set compression.up = "identity"',
        ),
        ({"compression": {"down": "replay"}}, "compression.down identity", "set compression.down"),
        ({"round": {"quorum": 0.6, "peers_min": 3}}, "round.quorum 1", "set round.quorum = 1.0"),
        ({"round": {"quorum": 1.0, "peers_min": 2}}, "round.peers_min 3", "set round.peers_min = 3"),
        (
            {"exchange": {"buffers": "averaged"}},
            "exchange.buffers coordinator",
            'set exchange.buffers = "coordinator"',
        ),
        (
            {"train": {"algorithm": "scaffold", "options": {"peers": 3}}},
            "beside the parameters",
            'set train.algorithm = "sgd" and leave out train.options',
        ),
        (
            {"mechanism": {"name": "masks", "options": {"peers": ["one"]}}},
            "mechanism.options: masks refuses them: peers are two or more",
            "",
        ),
        ({"mechanism": {"name": "masks", "options": {"peers": list(NAMES), "scales": 1}}}, "'scale'", ""),
    ):
        with pytest.raises(ConfigError) as refused:
            check_spec(_spec(**{**MASKED, **tables}))
        assert told in refused.value.message, refused.value
        assert fix in refused.value.fix, refused.value
