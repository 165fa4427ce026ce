"""The run's algorithm at work: what it is given of the server's groups and of its own state, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from exchange import algorithms
from exchange.contribution import Contribution, RoundContext
from exchange.declared_groups import declared
from exchange.folds import read_kept
from exchange.groups import Group
from exchange.tensorfile import read_tensors
from muster.errors import TaskError
from muster.model.layout import ParameterLayout
from muster.seeds import derive_seed
from muster.task.fitreport import checked
from muster.task.metrics import as_number
from muster.task.task import FitContext

STATE = "algorithm"  # the state array of this peer that holds what the algorithm keeps
SCALARS_MAX = 64  # beside counts and metrics
SCALAR_CHARACTERS_MAX = 100


@dataclass(frozen=True, kw_only=True)
class RunAlgorithm:
    """A run's algorithm, and the files of what it is given: the server's groups and this peer's states, by name."""

    name: str
    options: Mapping[str, Any]
    received: Mapping[str, str]
    state: Mapping[str, str]

    def build(self) -> algorithms.LocalAlgorithm:
        """Raises `ConfigError` as `exchange.algorithms.build` does."""
        return algorithms.build(self.name, self.options)

    def groups(self) -> tuple[Group, ...]:
        """What it declares. Raises `ConfigError`."""
        return declared(self.build(), self.name)

    def context(self, context: FitContext, layout: ParameterLayout) -> RoundContext:
        """With what has come down and what is kept. Raises `StorageError` where a file is not what it should be."""
        state = self.state.get(STATE)
        return RoundContext(
            **{each.name: getattr(context, each.name) for each in fields(context)},
            generator=torch.Generator().manual_seed(derive_seed(context.seed, "algorithm")),
            received={
                group.name: read_kept(group.vector(layout), _path(self.received.get(group.name)))
                for group in self.groups()
                if group.keep
            },
            state={} if state is None else read_tensors(Path(state)),
        )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def as_contribution(given: object, who: str) -> Contribution:
    """What `who` gave, its counts as whole numbers. A `FitReport` is a contribution without groups and state.

    Raises `TaskError` "task.bad_report".
    """
    if not isinstance(given, Contribution):
        return Contribution.of(checked(given, who))
    more = dict(given.more_scalars)
    wrong = [name for name, value in more.items() if not _is_scalar(name, value)]
    if wrong or len(more) > SCALARS_MAX:
        raise TaskError(
            "task.bad_report",
            f"{who} gave a scalar {wrong[0]!r:.100} that is none"
            if wrong
            else f"{who} gave {len(more)} scalars",
            fix=f"a scalar is a number with a printable name of at most {SCALAR_CHARACTERS_MAX} characters; "
            f"{SCALARS_MAX} at most",
        )
    own = Contribution.of(checked(given.report, who), groups=given.groups, state=given.state)
    return replace(own, scalars={**own.scalars, **{name: float(value) for name, value in more.items()}})


def _is_scalar(name: object, value: object) -> bool:
    named = isinstance(name, str) and 0 < len(name) <= SCALAR_CHARACTERS_MAX and name.isprintable()
    return named and as_number(value) is not None
