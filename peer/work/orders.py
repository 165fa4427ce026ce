"""What the daemon orders of its worker process, and what comes back: plain values that travel as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exchange.request import UpdateRequest
from muster.seeds import initial_seed
from muster.spec.model import RunSpec
from muster.work import algorithm_of
from peer.connection.checks import params_of
from protos.v1.membership_pb2 import Assignment


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every job on a model version needs. Paths are absolute."""

    run_id: str
    task: str  # "package.module:Class"
    task_folders: tuple[str, ...]
    options: Mapping[str, Any]  # the run spec's [task_options]
    site_name: str
    site_data: Mapping[str, Any]  # from this peer's policy
    site_seed: int  # the run's
    device: str  # "cuda:0", "mps", "cpu"
    base: str  # the model file
    seed: int  # for this run, round and peer
    source_digest: str = ""  # of the only source code of the task that is wanted; "": any is
    threads: int = 0  # to compute on; 0: as many as torch takes


@dataclass(frozen=True, kw_only=True)
class TrainOrder(Order):
    """Train from the base and write the update to `update`.

    `state` has the file of each state array that there is from earlier rounds; new values go to fresh files
    whose paths begin with `staged`.
    """

    assignment_id: str
    round: int
    base_version: int
    base_digest: str
    train: Mapping[str, Any]  # the run spec's [train]
    codec: str
    feedback: str
    counted_round: int  # the last one whose model has an update of this peer in it; 0: none
    update: str
    state: Mapping[str, str]
    staged: str
    warm_up_rounds: int = 0  # the run spec's
    senders: int = 1  # peers that are asked for an update in this round
    factor: str | None = None  # the file of what all updates of the round share; none before the first step
    # {"name": ..., "options": {...}}: of a drill, see `peer.training.attack_simulation`
    attack: Mapping[str, Any] | None = None
    aggregation: Mapping[str, Any] | None = None  # the run's table, for a drill
    # the files of the groups that the coordinator keeps beside the base, by name; of those without one, zeros
    received: Mapping[str, str] = field(default_factory=dict[str, str])
    mechanism: Mapping[str, Any] = field(default_factory=dict[str, Any])  # the run spec's [mechanism]

    def request(self) -> UpdateRequest:
        """What the update is made for and against."""
        return UpdateRequest(
            run_id=self.run_id,
            round=self.round,
            assignment_id=self.assignment_id,
            base_version=self.base_version,
            base_digest=self.base_digest,
            codec=self.codec,
            feedback=self.feedback,
            seed=self.seed,
            update=Path(self.update),
            staged=self.staged,
            state={name: Path(path) for name, path in self.state.items()},
            factor=None if self.factor is None else Path(self.factor),
            worker_momentum=float(self.train["worker_momentum"]),
            warm_up_rounds=self.warm_up_rounds,
            senders=self.senders,
            counted_round=self.counted_round,
            task=self.task,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateOrder(Order):
    """Evaluate the base on this site's own examples."""

    state: Mapping[str, str] = field(default_factory=dict[str, str])  # as in a `TrainOrder`


@dataclass(frozen=True, kw_only=True)
class PrepareOrder(Order):
    """Load what the role needs, on the base, and try the task out on a batch of it."""

    role: str
    evaluates: bool  # whether the run has this site evaluate too
    train: Mapping[str, Any]  # the run spec's [train]
    base_version: int
    base_digest: str
    round: int
    codec: str


@dataclass(frozen=True, kw_only=True)
class DrawOrder(Order):
    """Draw version 0 of the run from the seed, the same on every peer, and write it to the base."""

    exchange: Mapping[str, Any] = field(default_factory=dict[str, Any])  # the run spec's [exchange]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The files are complete and synced."""

    digest: str
    size_bytes: int
    examples: int
    steps: int
    staged: Mapping[str, str]  # state array -> file
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    warnings: Sequence[str] = ()  # what the task gave as metrics and is none


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Metrics of a version on this site."""

    metrics: Mapping[str, float]
    examples: int  # 0: the task does not say
    warnings: Sequence[str] = ()  # what the task gave as metrics and is none
    source_digest: str = ""  # of the task, as the worker has loaded it


@dataclass(frozen=True, kw_only=True)
class Site:
    """What of this peer's own settings goes into an order."""

    name: str
    task_folders: tuple[str, ...] = ()
    attack: Mapping[str, Any] | None = None


def _common(
    site: Site, offer: Assignment, spec: RunSpec, *, data: Mapping[str, Any], device: str, base: Path
) -> dict[str, Any]:
    return {
        "run_id": offer.run_id,
        "task": spec.task,
        "task_folders": site.task_folders,
        "options": spec.task_options,
        "site_name": site.name,
        "site_data": data,
        "site_seed": spec.seed,
        "device": device,
        "base": str(base),
        "seed": offer.seed,
        "source_digest": offer.source_digest if spec.task_sources == "same" else "",
    }


def _train_table(offer: Assignment, spec: RunSpec) -> dict[str, Any]:
    """The spec's [train], with the algorithm of the work's role and what its params say over that one's options."""
    table = spec.train.model_dump(mode="json")
    algorithm = algorithm_of(offer.work.role, table["algorithm"])
    options = table["options"] if algorithm == table["algorithm"] else {}
    return {
        **table,
        "algorithm": algorithm,
        "options": {**options, **params_of(offer.work).get("options", {})},
    }


def train_order(
    site: Site,
    offer: Assignment,
    spec: RunSpec,
    *,
    data: Mapping[str, Any],
    device: str,
    base: Path,
    stem: Path,
    state: Mapping[str, Path],
    factor: Path | None = None,
    received: Mapping[str, Path] = MappingProxyType({}),
) -> TrainOrder:
    """The files that it makes begin with `stem`."""
    return TrainOrder(
        **_common(site, offer, spec, data=data, device=device, base=base),
        assignment_id=offer.assignment_id,
        round=offer.round,
        base_version=offer.work.base.version,
        base_digest=offer.work.base.digest,
        train=_train_table(offer, spec),
        codec=spec.compression.up,
        feedback=spec.compression.feedback,
        warm_up_rounds=spec.compression.warm_up_rounds,
        senders=max(1, offer.cohort_size),
        counted_round=offer.counted_round,
        update=f"{stem}.update",
        state={key: str(path) for key, path in state.items()},
        staged=f"{stem}.state",
        factor=None if factor is None else str(factor),
        received={name: str(path) for name, path in received.items()},
        mechanism=spec.mechanism.model_dump(mode="json") if spec.mechanism.name else {},
        attack=site.attack,
        aggregation=None if site.attack is None else spec.aggregation.model_dump(mode="json"),
    )


def evaluate_order(
    site: Site,
    offer: Assignment,
    spec: RunSpec,
    *,
    data: Mapping[str, Any],
    device: str,
    base: Path,
    state: Mapping[str, Path] = MappingProxyType({}),
) -> EvaluateOrder:
    common = _common(site, offer, spec, data=data, device=device, base=base)
    return EvaluateOrder(**common, state={key: str(path) for key, path in state.items()})


def prepare_order(
    site: Site, offer: Assignment, spec: RunSpec, *, data: Mapping[str, Any], device: str, base: Path
) -> PrepareOrder:
    common = _common(site, offer, spec, data=data, device=device, base=base)
    train = _train_table(offer, spec)
    evaluates = spec.evaluate.every > 0 and "peers" in spec.evaluate.on
    return PrepareOrder(
        **common,
        role=offer.work.role,
        evaluates=evaluates,
        train=train,
        base_version=offer.work.base.version,
        base_digest=offer.work.base.digest,
        round=offer.round,
        codec=spec.compression.up,
    )


def draw_order(
    site: Site, offer: Assignment, spec: RunSpec, *, data: Mapping[str, Any], device: str, target: Path
) -> DrawOrder:
    common = _common(site, offer, spec, data=data, device=device, base=target)
    common["seed"] = initial_seed(spec.seed)
    return DrawOrder(**common, exchange=spec.exchange.model_dump(mode="json"))
