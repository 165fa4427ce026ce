"""What a peer is asked for, and what a role's work is.

A role is a word of the schedule's. `EVALUATE` is the evaluation of a version and answers with metrics. Every other role
is training and answers with an update: `TRAIN` by the algorithm that the run's spec names, any other word by the local
algorithm of that name ("muster.algorithms"), with the options that stand in the work's params.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRAIN = "train"
EVALUATE = "evaluate"
UNREADABLE = (ValueError, KeyError, TypeError, RecursionError)
PARAMS_BYTES_MAX = 16 << 10  # of a work's params as JSON


def evaluates(role: str) -> bool:
    """Whether the role's answer is metrics, and not an update."""
    return role == EVALUATE


def algorithm_of(role: str, usual: str) -> str:
    """The local algorithm that does the role's training; `usual` is the run's."""
    return usual if role == TRAIN else role


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is asked of a peer."""

    role: str
    base: int  # the model version that it starts from
    groups: tuple[str, ...] = ()  # of the server's groups that come down beside the base
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])  # the schedule's, a small JSON object

    def to_json(self) -> str:
        return json.dumps(
            {"role": self.role, "base": self.base, "groups": list(self.groups), "params": dict(self.params)},
            separators=(",", ":"),
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str) -> Work:
        """Raises one of `UNREADABLE` for what `to_json` did not write."""
        found = json.loads(text)
        return cls(
            role=found["role"],
            base=found["base"],
            groups=tuple(found["groups"]),
            params=dict(found["params"]),
        )
