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
    steps: int = 1  # times the local steps of the dense run, in each round
    rounds: float = 1.0  # times those of the dense run
    attacked: bool = False  # one peer lies, and the rule is the robust one
    everywhere: bool = False  # also where a run takes minutes

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
EF: dict[str, Any] = {"feedback": "ef14", "down_feedback": "ef14"}
SMALL = "topk:0.5+int4+zstd up, topk:0.4+sign down"
SMALL_TABLE: Tables = {"up": "topk:0.5+int4+zstd", "down": "topk:0.4+sign", **EF}


def _both(codec: str, *, everywhere: bool = False, **others: Any) -> Setting:
    return Setting(
        name=f"{codec} both ways", compression={"up": codec, "down": codec, **others}, everywhere=everywhere
    )


def _up(codec: str, **others: Any) -> Setting:
    """The way down is int8."""
    return Setting(name=f"{codec} up, int8 down", compression={"up": codec, "down": "int8", **others})


def _longer(name: str, compression: Tables, *, attacked: bool = False, everywhere: bool = True) -> Setting:
    """20 times the local steps in each of 0.11 times the rounds: 2.2 times the work, a ninth of the transfers."""
    return Setting(
        name=f"{name}, long rounds{', attacked' if attacked else ''}",
        compression=compression,
        steps=20,
        rounds=0.11,
        attacked=attacked,
        everywhere=everywhere,
    )


SETTINGS = (
    Setting(name=DENSE, everywhere=True),
    _both("bf16"),
    _both("int8", **EF),
    _up("topk:0.1+int8", feedback="ef14"),
    _both("topk:0.01+int8+rice", everywhere=True, **EF),
    _both("topk:0.005+int8+rice+zstd", **EF),
    Setting(
        name="topk:0.01+int8 with econtrol up, with ef14 down",
        compression={"up": "topk:0.01+int8", "feedback": "econtrol", "down": "topk:0.01+int8"},
    ),
    _both("sign", **EF),
    _both("e3m0", **EF),
    _both("nf4", **EF),
    _up("qsgd:7"),
    _up("terngrad"),
    _up("randk:0.05"),
    _up("ferret:4096"),
    _up("powersgd:2", feedback="ef14"),
    _up("powersgd:4:common", feedback="ef14"),
    Setting(
        name="topk:0.001 with dgc up, int8 down",
        compression={"up": "topk:0.001", "feedback": "dgc:0.9", "warm_up_rounds": 5, "down": "int8"},
    ),
    _longer("dense", {}),
    _longer("int8 both ways", {"up": "int8", "down": "int8", **EF}, everywhere=False),
    _longer(SMALL, SMALL_TABLE),
    Setting(name=DENSE_ATTACKED, attacked=True, everywhere=True),
    _longer(SMALL, SMALL_TABLE, attacked=True),
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A task, and what its dense run is."""

    name: str
    table: Tables
    takes_minutes: bool = False

    def runs(self, setting: Setting) -> bool:
        return setting.everywhere or not self.takes_minutes

    def spec(self, setting: Setting, peers: int, seed: int, rounds: int | None = None) -> RunSpec:
        """`rounds`: so many instead of the setting's own."""
        base = self.table
        whole = {
            **base,
            "name": f"{self.name}: {setting.name}"[:80],
            "rounds": rounds or round(base["rounds"] * setting.rounds),
            "seed": seed,
            "train": {**base["train"], "steps": base["train"]["steps"] * setting.steps},
            "aggregation": ROBUST if setting.attacked else MEAN,
            "compression": dict(setting.compression),
            # Everybody is waited for, so that the bytes and the models are the same however busy the machine is.
            "round": {"peers_min": peers, "quorum": 1.0, "grace_seconds": 100.0, "deadline_seconds": 120.0},
        }
        return RunSpec.model_validate(whole)


WORKLOADS = {
    "digits": Workload(
        name="digits",
        table={
            "task": "examples.digits:Digits",
            "rounds": 200,
            "task_options": {"partition": "iid", "hidden": [512, 512]},
            "train": {"steps": 3, "batch_size": 32, "lr": 0.05, "momentum": 0.9},
            "evaluate": {"every": 20},
        },
    ),
    "text": Workload(
        name="text",
        takes_minutes=True,
        table={
            "task": "examples.text:Text",
            "rounds": 200,
            "train": {"optimizer": "adamw", "lr": 0.003, "steps": 10, "batch_size": 8, "clip_norm": 1.0},
            "evaluate": {"every": 20},
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
