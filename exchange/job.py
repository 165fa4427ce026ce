"""What an aggregation is made of and what comes out: plain values, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from muster.spec.model import RunSpec
from muster.work import TRAIN

SCRATCH_BYTES_MAX = 256 << 20  # of decoded values; more: fewer reads of many or large updates


@dataclass(frozen=True, kw_only=True)
class UpdateBase:
    """What an update was made against: its own assignment's version and round, and what goes with that version."""

    version: int
    digest: str
    round: int
    estimate: Path | None = None  # what is held of the sender's link, where its feedback sends differences
    factor: Path | None = None  # the version's, where the senders of a round share one


@dataclass(frozen=True, kw_only=True)
class UpdateInput:
    """An admitted update. Those of one aggregation may have several bases."""

    assignment_id: str
    peer_id: str
    path: Path
    examples: int
    base: UpdateBase
    role: str = TRAIN  # of its work
    digest: str = ""  # of the file, whose bytes are compared with it as they are read; "": they are trusted
    weight: float | None = (
        None  # of a sum: as it is, signed; None: a share of the mean, as the spec weighs examples
    )


@dataclass(frozen=True, kw_only=True)
class AggregationJob:
    """`updates` are sorted by peer id; `states` maps the optimizer's state names to files (absent: zeros)."""

    spec: RunSpec
    base: Path
    updates: Sequence[UpdateInput]
    states: Mapping[str, Path]
    base_version: int
    base_digest: str
    round: int
    cohort: int  # how many peers were asked
    model_out: Path
    scratch_bytes_max: int = SCRATCH_BYTES_MAX
    states_out: Mapping[str, Path]  # with a place for `DELTA`, if the downlink compresses


@dataclass(frozen=True, kw_only=True)
class Treated:
    """How the rule treated one update."""

    assignment_id: str
    weight: float
    score: float
    selected: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class AggregationResult:
    """The new version, what is kept beside it, and how it came about."""

    model_digest: str
    model_bytes: int
    state_digests: Mapping[str, str]
    treatments: tuple[Treated, ...]
    reason: str
    warnings: tuple[tuple[str, str], ...] = ()  # cause and sentence
