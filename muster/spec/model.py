"""The run spec: everything that decides what a run computes. Validated whole, hashed, stored, immutable."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from methods.kinds import PRE_RULES
from methods.spelling import spell_table, split
from muster import plugins
from muster.files.digests import digest_bytes

# A task "package.module:Class", or a pattern of them.
TASK_PATTERN = r"^([\w.*?\[\]!-]+:[\w*?\[\]!-]+|\*)$"

DAY_SECONDS = 86_400.0
MONTH_SECONDS = 30 * DAY_SECONDS  # nothing that a round waits for takes longer
REPLAY = "replay"  # what compression.down may be besides a codec: the updates themselves go down
QUORUM = 0.8  # of the updates wanted, where the spec does not say


def share(fraction: float, total: int) -> int:
    """`fraction` of `total`, rounded up and at least 1; a product that only floating point lifts above a
    whole number (0.1 * 30 = 3.0000000000000004) is that number."""
    return max(1, math.ceil(fraction * total - 1e-9))


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _spelled(value: Any) -> Any:
    """A plug-in that carries its options in one string, "topk:0.01", may also be a table of name and options."""
    return spell_table(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else value


class OptionsTable(Table):
    """A table that names a plug-in, with the options that are the plug-in's own."""

    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the plug-in itself: muster plugin show NAME"
    )

    @model_serializer(mode="wrap")
    def _only_what_is_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without options none are written, so that a spec of before has the digest that it had."""
        data: dict[str, Any] = handler(self)
        if not data.get("options"):
            data.pop("options", None)
        return data


class TrainTable(Table):
    """What each peer does with its data in a round."""

    algorithm: str = Field("sgd", description="the local algorithm, by its entry-point name: sgd, spsa")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0, description="the local optimizer's learning rate")
    momentum: float = Field(0.0, ge=0, lt=1, description="within one round's local steps (sgd only)")
    weight_decay: float = Field(0.0, ge=0)
    epochs: int | None = Field(None, ge=1, description="passes over the local data; 1 if steps is absent too")
    steps: int | None = Field(None, ge=1, description="local steps instead of epochs")
    batch_size: int = Field(32, ge=1)
    clip_norm: float | None = Field(None, gt=0, description="clips each step's gradient to this L2 norm")
    worker_momentum: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="momentum over rounds, kept on the peer, applied to its update; makes rules stronger",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="mixed precision of forward and backward where the device has it"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="further options of the algorithm")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError("momentum belongs to optimizer = 'sgd'; adamw has its own")
        return self


class SamplingTable(OptionsTable):
    """Who takes part in a round."""

    policy: str = Field("uniform", description="the sampler, by its entry-point name: uniform, poisson")
    fraction: float | None = Field(
        None, gt=0, le=1, description="share of the active peers; 1 if count is absent too"
    )
    count: int | None = Field(None, ge=1, description="so many peers instead of a share (uniform only)")
    over_select: float = Field(
        1.0,
        ge=1,
        le=4,
        description="asks this many times more peers than are needed; the first to deliver count",
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.fraction is not None and self.count is not None:
            raise ValueError("give fraction or count, not both")
        return self


FAULTS_SHARE = 0.2  # of a cohort that may be faulty, unless the spec says so


class AggregationTable(Table):
    """How the updates of a round become one. Without a rule: what `benchmarks.robustness` found best, against a
    fifth of the cohort and at least one peer of three or more; with a rule, what stands beside it and nothing else."""

    rule: str = Field(
        "caf", description="the aggregation rule, by its entry-point name: muster aggregator list"
    )
    pre: tuple[str, ...] = Field(
        ("arc",), description="pre-rules, applied in order; with a rule of your own none unless said"
    )
    faults: int | float | None = Field(
        None,
        description="how many of a round's updates may be faulty, or below 0.5 the share of its cohort, rounded "
        "down; never lowered by itself. Unless said a fifth of the cohort, and at least 1 where more than two updates "
        "come; with a rule of your own 0",
    )
    trusted_peer: str | None = Field(
        None, description="the peer that every round asks and whose update the rule trusts (fltrust, nna)"
    )
    weights: Literal["uniform", "examples"] = Field(
        "examples", description="of a mean; robust rules ignore declared example counts"
    )
    examples_max: int | None = Field(
        None,
        ge=1,
        description="a declared example count above this counts as this; unless said there is no limit",
    )
    norm_max: float | None = Field(
        None, gt=0, description="admission refuses an update of greater L2 norm; unless said 1e18"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="further options of the rule")

    @model_validator(mode="after")
    def _no_default_beside_a_rule(self) -> Self:
        if "rule" in self.model_fields_set:
            for name, plain in (("pre", ()), ("faults", 0)):
                if name not in self.model_fields_set:
                    object.__setattr__(
                        self, name, plain
                    )  # the model is frozen, and this is part of its making
        return self

    @field_validator("pre", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        return tuple(map(_spelled, value)) if isinstance(value, list | tuple) else value

    @field_validator("rule")
    @classmethod
    def _name_here(cls, value: str) -> str:
        return plugins.canonical("muster.rules", value)

    @field_validator("faults")
    @classmethod
    def _number_or_share(cls, value: float | None) -> int | float | None:
        if value is None:
            return None
        if value >= 0 and value == int(value):
            return int(value)
        if 0 < value < 0.5:
            return value
        raise ValueError(
            f"must be a number of updates (0, 1, 2, ...) or a share of the cohort above 0 and below 0.5, not {value:g}"
        )

    def faults_of(self, cohort: int, wanted: int | None = None) -> int:
        """f in a round for which so many peers were asked, of which `wanted` updates are enough (None: all)."""
        if isinstance(self.faults, int):
            return self.faults
        part = FAULTS_SHARE if self.faults is None else self.faults
        found = math.floor(part * cohort + 1e-9)  # 0.1 * 30 is 3, whatever floating point makes of it
        if self.faults is not None or found or (cohort if wanted is None else wanted) <= 2:
            return found  # no rule bears one faulty of two
        return 0 if self._merges_rows() else 1

    def _merges_rows(self) -> bool:
        """Whether a pre-rule makes one row of several, so that few updates leave too few rows to bear one faulty. Loads
        pre-rules that the spec's author has chosen."""
        if self.pre == type(self).model_fields["pre"].default:
            return False
        return any(plugins.fact(PRE_RULES, split(each)[0], "keeps_rows", True) is False for each in self.pre)

    def format_faults(self, cohort: int, wanted: int | None = None) -> str:
        """f, and where it comes from: "f is 2 (0.2 of a cohort of 11)"; "" where nobody is to be faulty."""
        if self.faults == 0:
            return ""
        found = self.faults_of(cohort, wanted)
        if isinstance(self.faults, int):
            return f"f is {found} (declared)"
        part = FAULTS_SHARE if self.faults is None else self.faults
        least = ", but at least 1" if found == 1 and part * cohort < 1 - 1e-9 else ""
        return f"f is {found} ({part:g} of a cohort of {cohort}{least})"


class CompressionTable(Table):
    up: str = Field(
        "identity",
        description="codec of updates: bf16, int8, topk:0.01; composed: topk:0.01+int8+rice; one for each layer: "
        "int8|int4|sign; of which updates add up: randk:0.1:common, powersgd:4:common; muster compressor list",
    )
    feedback: str = Field(
        "none",
        description="error feedback kept on the peer: none, ef14, ef21, econtrol, dgc:0.9, momentum:0.9, masha:0.9",
    )
    warm_up_rounds: int = Field(
        0,
        ge=0,
        description="so many first rounds go up without loss, with dgc at ever smaller shares; onebit-adam freezes "
        "its second moment after them",
    )
    down: str = Field(
        "identity",
        description="codec of the step from version to version, for peers that hold an older one; lossy: the "
        "model itself moves by what they decode; replay: the updates themselves, 4096 at most, of which peers repeat "
        "the sum",
    )
    down_feedback: str = Field("ef14", description="error feedback kept on the coordinator: none, ef14")

    @field_validator("up", "feedback", "down", "down_feedback", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        return _spelled(value)


class ExchangeTable(Table):
    """What of the model peers send and fetch. What no gradient is asked of in `Task.model` never moves."""

    tensors: Literal["all", "trainable"] = Field(
        "all",
        description="of a version that is fetched whole: all of it, or only what rounds move, where the peer's own "
        "drawing of the model has the rest (trainable); the version's digest proves that it has",
    )
    include: tuple[str, ...] = Field(
        (), description="patterns of names in state_dict(): of the trained parameters only these travel"
    )
    exclude: tuple[str, ...] = Field(
        (),
        description="patterns of trained parameters that do not travel: each peer trains and keeps its own, and the "
        "model has their first values",
    )
    buffers: Literal["averaged", "local", "coordinator"] = Field(
        "averaged",
        description="buffers of which the task says nothing: averaged as `Task.buffers` has it, each peer's own "
        "(local), or those of version 0 (coordinator)",
    )


class ServerTable(OptionsTable):
    """How the aggregate moves the model."""

    optimizer: str = Field(
        "sgd", description="sgd, momentum, nesterov, adam, yogi, adagrad, onebit-adam, masha"
    )
    lr: float = Field(1.0, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum and nesterov; masha's tau")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0, description="added to the root in adam, yogi and adagrad")


class RoundTable(Table):
    peers_min: int = Field(1, ge=1, description="a round opens when this many peers are active")
    quorum: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the cohort whose updates make a round complete; 1: one missing peer skips the round; "
        "if absent 0.8, and of four and fewer all but one, with the last one waited for while it works; "
        "never fewer than the rule needs, which with f = 1 is three",
    )
    grace_seconds: float = Field(
        5.0,
        ge=0,
        le=MONTH_SECONDS,
        description="how long the rest may still deliver after the quorum; a round with all of them closes at once",
    )
    deadline_seconds: float = Field(
        60.0, gt=0, le=MONTH_SECONDS, description="a round closes with what it has after this long"
    )
    prepare_seconds: float = Field(
        1800.0,
        gt=0,
        le=DAY_SECONDS,
        description="how long a site may load its data and try the task out before it trains; it is not taken from the "
        "deadline, which begins then. Lower: a site that hangs at it is given up sooner",
    )
    attempts_max: int = Field(
        3, ge=1, le=20, description="how often one peer is asked in one round after failures"
    )
    skips_max: int = Field(
        5, ge=1, description="this many skipped rounds in a row pause the run, until muster run resume"
    )

    def quorum_of(self, needed: int, asked: int) -> int:
        """How many of `needed` updates make a round complete, where so many peers are asked. What the rule needs
        beyond is not in it."""
        if self.quorum is not None:
            return share(self.quorum, needed)
        return min(share(QUORUM, needed), max(1, asked - 1))

    def patient_quorum(self, needed: int) -> int:
        """With fewer updates than this, who is still at work is waited for beyond the grace time: where one loss
        is most of the cohort, being slow is none."""
        return share(QUORUM if self.quorum is None else self.quorum, needed)


class ScheduleTable(OptionsTable):
    """What happens next. A schedule without options may stand as its name alone: schedule = "synchronous"."""

    name: str = Field("synchronous", description="the schedule, by its entry-point name")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @model_serializer(mode="wrap")
    def _name_alone_again(self, handler: SerializerFunctionWrapHandler) -> Any:
        return handler(self) if self.options else self.name


class MechanismTable(OptionsTable):
    """What wraps each update at its peer, before it is encoded, and is taken off the aggregate."""

    name: str = Field(
        "",
        description="the mechanism, by its entry-point name: muster plugin list; without one nothing is wrapped",
    )


class PrivacyTable(Table):
    """What the coordinator may not see."""

    secure_aggregation: bool = Field(False, description="only the sum of the updates is shown; not built yet")


class EvaluateTable(Table):
    every: int = Field(1, ge=0, description="evaluate each so many rounds and at the end; 0: never")
    on: tuple[Literal["coordinator", "peers"], ...] = ("coordinator",)


class RunSpec(Table):
    """One run. Unknown keys are errors; see `muster config schema`."""

    task: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="'package.module:Class'")
    name: str = Field("", max_length=80, description="for people; the task's class if empty")
    rounds: int = Field(ge=1, le=1_000_000, description="rounds to commit")
    seed: int = Field(0, ge=0, lt=2**63)
    schedule: ScheduleTable = ScheduleTable()  # type: ignore[call-arg]  # every field has a default
    task_options: dict[str, Any] = Field(
        default_factory=dict, description="handed to the task as site.options"
    )
    task_sources: Literal["warn", "same", "ignore"] = Field(
        "warn",
        description="what becomes of peers whose source code of the task is not the coordinator's: they are told of "
        "(warn), refused (same), or taken without a word (ignore)",
    )
    train: TrainTable = TrainTable()  # type: ignore[call-arg]  # every field has a default
    sampling: SamplingTable = SamplingTable()  # type: ignore[call-arg]
    aggregation: AggregationTable = AggregationTable()  # type: ignore[call-arg]
    compression: CompressionTable = CompressionTable()  # type: ignore[call-arg]
    exchange: ExchangeTable = ExchangeTable()  # type: ignore[call-arg]
    server: ServerTable = ServerTable()  # type: ignore[call-arg]
    mechanism: MechanismTable = MechanismTable()  # type: ignore[call-arg]
    privacy: PrivacyTable = PrivacyTable()  # type: ignore[call-arg]
    round: RoundTable = RoundTable()  # type: ignore[call-arg]
    evaluate: EvaluateTable = EvaluateTable()  # type: ignore[call-arg]

    def faults_of(self, cohort: int) -> int:
        """f in a round for which so many peers were asked."""
        return self.aggregation.faults_of(cohort, self._wanted(cohort))

    def format_faults(self, cohort: int) -> str:
        """f, and where it comes from; "" where the spec says that it is 0."""
        return self.aggregation.format_faults(cohort, self._wanted(cohort))

    def _wanted(self, cohort: int) -> int:
        """How many updates at least the spec takes of a cohort of this size: over-selection has made it larger, and a
        quorum does with fewer."""
        wanted = math.floor((cohort - 1) / self.sampling.over_select) + 1
        quorum: float | None = self.round.quorum
        return wanted if quorum is None else math.ceil(quorum * wanted - 1e-9)

    @model_serializer(mode="wrap")
    def _only_what_is_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Tables that came later are written where they say something, so that older specs keep their digests."""
        data: dict[str, Any] = handler(self)
        if self.exchange == ExchangeTable():  # type: ignore[call-arg]
            data.pop("exchange", None)
        if self.mechanism == MechanismTable():  # type: ignore[call-arg]
            data.pop("mechanism", None)
        return data

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """What `canonical_json` wrote; each text is parsed once a process, for all who ask. Raises pydantic's
        `ValidationError`."""
        return _parsed(text)

    def canonical_json(self) -> str:
        """Defaults filled in, keys sorted: equal specs give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        return digest_bytes(self.canonical_json().encode())


@lru_cache(maxsize=64)  # runs that are live, and a few that are looked at
def _parsed(text: str) -> RunSpec:
    return RunSpec.model_validate_json(text)
