"""Mechanisms: what wraps an update between training and encoding, and is taken off the result again.

    peer          update -> clip, momentum -> seal -> codec -> file
    receiver      files -> decode -> rule -> open -> server step

A mechanism adds noise or masks to each chunk of the parameters. Buffers, counters, groups of algorithms, example counts
and metrics are not sealed: a mechanism whose run must not show them says so in its `requires`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from methods import MethodError, make
from methods.kinds import MECHANISMS
from muster.errors import ConfigError, TaskError
from muster.plugins import find
from muster.runtime.secret_random import SecretRandom
from muster.spec.model import REPLAY, RunSpec

if TYPE_CHECKING:
    from torch import Tensor

    from aggregators import Plan
    from exchange.groups import Group
    from exchange.job import UpdateInput
    from exchange.request import UpdateRequest
    from muster.task.task import Site


@dataclass(frozen=True, kw_only=True)
class SealContext:
    """What a mechanism knows at the sender of one chunk.

    `seed` is for this run, round and sender, and the receiver can derive it; `secret` is the generator that nobody else
    can derive. `site.data` is of this machine's own policy and never leaves it.
    """

    run_id: str
    round: int
    index: int  # of the chunk
    start: int  # its first coordinate
    size: int  # of the whole vector of parameters
    senders: int  # that are asked for an update in this round
    seed: int
    site: Site
    secret: SecretRandom


@dataclass(frozen=True, kw_only=True)
class OpenContext:
    """What a mechanism knows at the receiver of one chunk of the total. `senders` are the peers whose updates are in
    it, with the round of each and the rule's weights; `cohort` is how many were asked."""

    index: int
    start: int
    size: int
    senders: Sequence[str]
    rounds: Sequence[int]
    weights: Sequence[float]
    cohort: int


class Mechanism(Protocol):
    """A frozen dataclass whose fields are the options that `[mechanism.options]` may give it.

    `sums_only`: a sealed update tells nothing by itself, so that no rule can judge it. `clip_norm`: the L2 norm to
    which an update is scaled down before it is sealed.
    """

    name: ClassVar[str]
    sums_only: ClassVar[bool] = False

    @property
    def clip_norm(self) -> float:
        return math.inf

    def seal(self, values: Tensor, context: SealContext) -> Tensor:
        """What is sent of a chunk, float32 [c], in new memory; `values` [c] stay as they are. Several threads ask at
        once. Made again for a repeated attempt it has to be the same, unless it draws from `context.secret`."""
        ...

    def open(self, total: Tensor, context: OpenContext) -> None:
        """Changes the aggregate [c] in place. Asked again of the same it does the same. Raises `AggregationRefused`
        where the total cannot be opened: the round is skipped."""
        ...

    def norm_max(self, size: int) -> float:
        """The greatest L2 norm that an honest sealed update of so many coordinates has; infinite where none is known.
        All that admission can hold a sealed update to."""
        ...


def build(spec: RunSpec) -> Mechanism | None:
    """The run's. Raises `ConfigError` `plugin.unknown`, `mechanism.bad_options`."""
    return build_named(spec.mechanism.name, spec.mechanism.options)


def build_named(name: str, options: Mapping[str, Any]) -> Mechanism | None:
    """None where the name is empty. Raises as `build`."""
    if not name:
        return None
    try:
        mechanism: Mechanism = make(find(MECHANISMS, name), name, options, MECHANISMS)
    except MethodError as error:
        raise ConfigError(
            "mechanism.bad_options",
            f"the mechanism {name!r} refuses its options: {error}",
            fix="correct [mechanism.options] in the run spec",
        ) from error
    return mechanism


def norm_max(spec: RunSpec, size: int) -> float:
    """To which admission holds updates of this run because of its mechanism."""
    mechanism = build(spec)
    return math.inf if mechanism is None else mechanism.norm_max(size)


def opening(spec: RunSpec, updates: Sequence[UpdateInput], plan: Plan, cohort: int) -> Opening:
    """Of the run's mechanism, for what the plan makes of these updates. Raises as `build`."""
    return Opening(mechanism=build(spec), updates=updates, plan=plan, cohort=cohort)


@dataclass(frozen=True, kw_only=True)
class Sealing:
    """A run's mechanism at a sender."""

    mechanism: Mechanism
    site: Site
    secret: SecretRandom

    def check_groups(self, groups: Sequence[Group]) -> None:
        """What an algorithm sends beside the parameters would go unsealed. Raises `TaskError` "mechanism.unsealed"."""
        if groups:
            raise TaskError(
                "mechanism.unsealed",
                f"the algorithm sends {groups[0].name!r} beside the parameters, and {self.mechanism.name} seals the "
                "parameters alone",
                fix="give that work an algorithm that sends nothing else, such as sgd, or run without a mechanism",
            )

    def seal(self, values: Tensor, request: UpdateRequest, index: int, start: int, size: int) -> Tensor:
        """A chunk of the update that is asked for, as it is sent."""
        context = SealContext(
            run_id=request.run_id,
            round=request.round,
            index=index,
            start=start,
            size=size,
            senders=request.senders,
            seed=request.seed,
            site=self.site,
            secret=self.secret,
        )
        return self.mechanism.seal(values, context)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A run's mechanism at the receiver of these updates; without one it leaves the total as it is."""

    mechanism: Mechanism | None
    updates: Sequence[UpdateInput]
    plan: Plan
    cohort: int

    def open(self, total: Tensor, index: int, start: int, size: int) -> None:
        """Opens a chunk [c] of the aggregate in place. Raises `AggregationRefused`."""
        if self.mechanism is None:
            return
        context = OpenContext(
            index=index,
            start=start,
            size=size,
            senders=[update.peer_id for update in self.updates],
            rounds=[update.base.round for update in self.updates],
            weights=self.plan.weights.tolist(),
            cohort=self.cohort,
        )
        self.mechanism.open(total, context)


def refusals(spec: RunSpec) -> Iterator[str]:
    """What goes with no mechanism, or not with this one. Its own demands on the spec are apart."""
    from exchange.declared_groups import groups_of_run  # torch comes with it

    mechanism = build(spec)
    if mechanism is None:
        return
    if spec.compression.down == REPLAY:
        yield (
            f"compression.down replay repeats the updates as they came up, and {mechanism.name} seals those: "
            "compression.down identity"
        )
    if "|" in spec.compression.up:
        yield (
            f"{spec.compression.up} chooses codecs by what an update is like, and {mechanism.name} does not show that: "
            "one codec in compression.up"
        )
    if groups := groups_of_run(spec):
        yield (
            f"{spec.train.algorithm} sends {groups[0].name!r} beside the parameters, and {mechanism.name} seals the "
            "parameters alone: train.algorithm sgd"
        )
