"""What a local algorithm is given beside the model and the data, and what it gives back.

The trained parameters are no part of it: they are read from the module chunk by chunk. A contribution has what goes
with them: groups of tensors that the algorithm declares (`exchange.groups.Group`), scalars, and the algorithm's own
state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from muster.errors import TaskError
from muster.task.task import FitContext, FitReport

if TYPE_CHECKING:
    import torch
    from torch import Tensor

METRIC = "metric/"  # how the scalars that are metrics begin

Tensors = Mapping[str, "Tensor"]
NO_GROUPS: Mapping[str, Tensors] = MappingProxyType({})
NO_TENSORS: Tensors = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class RoundContext(FitContext):
    """A `FitContext` with what only the run's algorithm is given.

    received    the groups that the coordinator keeps, by name, each by the names of its tensors, on the CPU. All zeros
                until a round has moved them. They are the algorithm's own copies.
    state       the `Contribution.state` of this peer's last update that is in the model; empty before the first one,
                and after the peer has lost its disk. A round that is skipped rolls it back.
    generator   reproducible, for this run, round and peer; `secret` is the one that nobody else can derive.
    """

    generator: torch.Generator
    received: Mapping[str, Tensors] = field(default_factory=dict[str, "Tensors"])
    state: Tensors = field(default_factory=dict[str, "Tensor"])


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """Of one training; the model was changed in place.

    groups    for each group that the algorithm declares, its tensors by name, on any device
    scalars   "examples" and "steps", whole numbers, "metric/NAME", and any others that the algorithm sends along
    state     what it wants to find in `RoundContext.state` the next time, whole; of any dtype and shape
    """

    groups: Mapping[str, Tensors] = field(default_factory=dict[str, "Tensors"])
    scalars: Mapping[str, float] = field(default_factory=dict[str, float])
    state: Tensors = field(default_factory=dict[str, "Tensor"])

    OWN: ClassVar[tuple[str, ...]] = ("examples", "steps")

    @classmethod
    def of(
        cls,
        report: FitReport,
        *,
        groups: Mapping[str, Tensors] = NO_GROUPS,
        state: Tensors = NO_TENSORS,
    ) -> Contribution:
        """With the report's numbers as scalars."""
        metrics = {f"{METRIC}{name}": value for name, value in report.metrics.items()}
        scalars = {"examples": report.examples, "steps": report.steps, **metrics}
        return cls(groups=groups, scalars=scalars, state=state)

    @property
    def report(self) -> FitReport:
        """The numbers that every algorithm gives. Raises `TaskError` "task.bad_report" where one is missing."""
        if missing := [name for name in self.OWN if name not in self.scalars]:
            raise TaskError(
                "task.bad_report",
                f"the contribution has no scalar {missing[0]!r}",
                fix="give it with Contribution.of(FitReport(examples=..., steps=...))",
            )
        metrics = {
            name.removeprefix(METRIC): value
            for name, value in self.scalars.items()
            if name.startswith(METRIC)
        }
        return FitReport(examples=self.scalars["examples"], steps=self.scalars["steps"], metrics=metrics)  # type: ignore[arg-type]  # checked by whoever takes the report

    def measured(self, metrics: Mapping[str, float]) -> Contribution:
        """The same with these metrics in place of its own."""
        report = replace(self.report, metrics=metrics)
        own = Contribution.of(report, groups=self.groups, state=self.state)
        return replace(own, scalars={**own.scalars, **self.more_scalars})

    @property
    def more_scalars(self) -> Mapping[str, float]:
        """Those that are neither a report's counts nor metrics."""
        return {
            name: value
            for name, value in self.scalars.items()
            if name not in self.OWN and not name.startswith(METRIC)
        }
