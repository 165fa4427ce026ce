"""The algorithm spsa and the codec one-byte go together, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coordinator.submission.checks import check_spec
from muster.errors import ConfigError
from muster.spec.model import RunSpec

TABLES: dict[str, dict[str, Any]] = {"train": {"algorithm": "spsa"}, "compression": {"up": "one-byte:16"}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": {"lr": 0.2, "batch_size": 8, "options": {"eps": 1e-4}}},
        {"server": {"optimizer": "momentum"}, "compression": {"down": "int8"}},
    ],
)
def test_settings_that_go_together(make_spec: Callable[..., RunSpec], changes: dict[str, Any]) -> None:
    check_spec(make_spec(**merged(changes)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compression": {"up": "int8"}}, "spsa needs compression.up one-byte:P"),
        ({"compression": {"up": "one-byte:16+zstd"}}, "spsa needs compression.up one-byte:P"),
        ({"compression": {"feedback": "ef14"}}, "compression.feedback none, not ef14"),
        ({"compression": {"warm_up_rounds": 1}}, "compression.warm_up_rounds 0"),
        ({"train": {"worker_momentum": 0.9}}, "train.worker_momentum could not be sent"),
        ({"train": {"momentum": 0.9}}, "knows no train.momentum"),
        ({"train": {"steps": 5}}, "knows no train.steps"),
        ({"train": {"precision": "bfloat16"}}, "knows no train.precision"),
        ({"train": {"algorithm": "sgd"}}, "one-byte carries next to nothing"),
        (
            {"train": {"algorithm": "sgd"}, "compression": {"up": "topk:0.1+one-byte:4"}},
            "belongs to train.algorithm",
        ),
        (
            {"train": {"algorithm": "sgd"}, "compression": {"up": "int8|one-byte:4"}},
            "belongs to train.algorithm",
        ),
        ({"compression": {"down": "one-byte:16"}}, "compression.down is another codec"),
    ],
)
def test_settings_that_do_not_are_refused(
    make_spec: Callable[..., RunSpec], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match="the run spec asks for what cannot be done here") as caught:
        check_spec(make_spec(**merged(changes)))
    assert said in str(caught.value)


def merged(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: {**TABLES.get(name, {}), **changes.get(name, {})} for name in {*TABLES, *changes}}
