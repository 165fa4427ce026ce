"""The tasks and the compression settings that `benchmarks.traffic` runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import compressors
from muster.errors import ConfigError
from muster.spec.model import RunSpec

Tables = Mapping[str, Any]
ROBUST: Tables = {"rule": "trimmed-mean", "pre": ["arc", "nnm"], "faults": 1}
MEAN: Tables = {"rule": "mean"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What differs from the dense run of the same task."""

    name: str
    compression: Tables = field(default_factory=dict[str, Any])
    train: Tables = field(default_factory=dict[str, Any])
    server: Tables = field(default_factory=dict[str, Any])
    rounds: float = 1.0  # times those of the dense run
    attacked: bool = False  # one peer lies, and the rule is the robust one

    def refusal(self) -> str | None:
        """Why this installation cannot run it."""
        try:
            for key in ("up", "down"):
                spelling = str(self.compression.get(key, "identity"))
                if spelling != "replay":
                    compressors.build(spelling)
            compressors.build_feedback(str(self.compression.get("feedback", "none")))
        except compressors.CodecError as error:
            return str(error)
        return None


DENSE = "dense"
DENSE_ATTACKED = "dense, attacked"
EF = {"feedback": "ef14", "down_feedback": "ef14"}


def _both(codec: str, **others: Any) -> Setting:
    return Setting(name=f"{codec} both ways", compression={"up": codec, "down": codec, **others})


SETTINGS = (
    Setting(name=DENSE),
    _both("bf16"),
    _both("int8", **EF),
    Setting(name="topk:0.1 up, int8 down", compression={"up": "topk:0.1", "down": "int8", **EF}),
    _both("topk:0.01", **EF),
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A task, and what its dense run is."""

    name: str
    table: Tables

    def spec(self, setting: Setting, peers: int, seed: int, rounds: int | None = None) -> RunSpec:
        """`rounds`: so many instead of the setting's own."""
        base = self.table
        whole = {
            **base,
            "name": f"{self.name}: {setting.name}"[:80],
            "rounds": rounds or round(base["rounds"] * setting.rounds),
            "seed": seed,
            "train": {**base["train"], **setting.train},
            "aggregation": ROBUST if setting.attacked else MEAN,
            "compression": dict(setting.compression),
            "server": {**base.get("server", {}), **setting.server},
            # Everybody is waited for, so that the bytes and the models are the same however busy the machine is.
            "round": {"peers_min": peers, "quorum": 1.0, "grace_seconds": 100.0, "deadline_seconds": 120.0},
        }
        return RunSpec.model_validate(whole)


WORKLOADS = {
    "digits": Workload(
        name="digits",
        table={
            "task": "examples.digits:Digits",
            "rounds": 100,
            "task_options": {"partition": "iid", "hidden": [512, 512]},
            "train": {"epochs": 1, "batch_size": 32, "lr": 0.05, "momentum": 0.9},
        },
    ),
    "text": Workload(
        name="text",
        table={
            "task": "examples.text:Text",
            "rounds": 100,
            "train": {"optimizer": "adamw", "lr": 0.003, "steps": 10, "batch_size": 32, "clip_norm": 1.0},
            "evaluate": {"every": 10},
        },
    ),
}


def named(names: list[str]) -> list[Setting]:
    """Raises `ConfigError` if one of them is no setting."""
    known = {setting.name: setting for setting in SETTINGS}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            "benchmark.no_setting",
            f"no setting is called {unknown[0]!r}",
            fix=f"one of: {'; '.join(known)}",
        )
    return [known[name] for name in names]
