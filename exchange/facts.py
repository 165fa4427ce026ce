"""What admission finds out about an update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class UpdateFacts:
    """An admitted update, as it was measured; `examples` and `metrics` are the peer's word."""

    digest: str
    size_bytes: int
    dense_bytes: int
    examples: int
    norm: float
    source_digest: str = ""  # the peer's word: of its source code of the task
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
