"""What whoever makes an update is asked for; plain values, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class UpdateRequest:
    """What an update is made for and against, and where its files lie.

    `state` has the file of each state array that there is from earlier updates; new values go to fresh files whose
    paths begin with `staged`.
    """

    run_id: str
    round: int
    assignment_id: str
    base_version: int
    base_digest: str
    codec: str  # the run's
    feedback: str
    seed: int  # for this run, round and sender; the receiver derives it too
    update: Path
    staged: str
    state: Mapping[str, Path] = field(default_factory=dict[str, Path])
    factor: Path | None = None  # the file of what all updates of the round share; none before the first step
    worker_momentum: float = 0.0
    warm_up_rounds: int = 0
    senders: int = 1  # that are asked for an update in this round
    counted_round: int = 0  # the last one whose model has an update of this sender in it; 0: none
    task: str = ""  # for messages
