"""What the daemon orders of its worker process, and what comes back: plain values that travel as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every job on a model version needs. Paths are absolute."""

    task: str  # "package.module:Class"
    task_folders: tuple[str, ...]
    options: Mapping[str, Any]  # the run spec's [task_options]
    site_name: str
    site_data: Mapping[str, Any]  # from this peer's policy
    site_seed: int  # the run's
    device: str  # "cuda:0", "mps", "cpu"
    base: str  # the model file
    seed: int  # for this run, round and peer


@dataclass(frozen=True, kw_only=True)
class TrainOrder(Order):
    """Train from the base and write the update to `update`.

    `state` has the file of each state array that there is from earlier rounds; new values go to fresh files
    whose paths begin with `staged`.
    """

    assignment_id: str
    run_id: str
    round: int
    base_digest: str
    train: Mapping[str, Any]  # the run spec's [train]
    codec: str
    feedback: str
    update: str
    state: Mapping[str, str]
    staged: str
    attack: Mapping[str, Any] | None = None  # {"name": ..., "options": {...}}: a drill, see `peer.drill`


@dataclass(frozen=True, kw_only=True)
class EvaluateOrder(Order):
    """Evaluate the base on this site's own examples."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The files are complete and synced."""

    digest: str
    size_bytes: int
    examples: int
    steps: int
    staged: Mapping[str, str]  # state array -> file
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    metrics: Mapping[str, float]
    examples: int
