"""Who takes part in a round. A sampler is a pure function of who is there and of a seeded generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import ClassVar, Protocol

from coordinator.engine.history import NO_HISTORY
from coordinator.engine.state import PeerView, RunState
from methods import Requirement, SpecValues
from methods.kinds import SAMPLERS
from muster import plugins
from muster.spec.model import SamplingTable, share


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Whom a round asks."""

    cohort: tuple[str, ...]  # peer ids, sorted
    needed: int  # updates wanted; fewer than the cohort where it is over-selected
    roles: Mapping[str, str] = field(default_factory=dict[str, str])  # by peer, where it is not "train"


class Sampler(Protocol):
    """Who takes part in a round: a frozen dataclass, whose fields are the options that a run spec may give it."""

    def needed(self, peers: int) -> int:
        """How many updates a draw from so many peers wants; the expectation where that is random."""
        ...

    def sample(self, peers: Sequence[PeerView], random: Random) -> Draw:
        """The same draw for the same peers, in whatever order, and the same generator. They come with their history in
        the run."""
        ...


def views(state: RunState, peers: Mapping[str, PeerView], peer_ids: Iterable[str]) -> list[PeerView]:
    """Those of some peers, with their history in the run."""
    return [replace(peers[each], history=state.history.get(each, NO_HISTORY)) for each in peer_ids]


def build(table: SamplingTable) -> Sampler:
    """The sampler of a `[sampling]` table: a frozen dataclass whose fields are its options. Of the table's own keys
    (fraction, count, over_select) it is given those that it has a field for; the rest is in `[sampling.options]`.

    Raises `ConfigError` for a policy that nothing provides, or that refuses its options.
    """
    sampler: Sampler = plugins.make(SAMPLERS, table.policy, plugins.values(SAMPLERS, table.policy, table))
    return sampler


KNOBS: Mapping[str, str] = {
    "fraction": "share of the active peers, above 0 and up to 1; None: all, if there is no count",
    "count": "so many peers instead of a share, at least 1",
    "over_select": "asks so many times more peers than are needed, from 1 to 4; the first to deliver count",
}


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """A fixed number of peers, every subset of that size equally likely."""

    knobs: ClassVar[Mapping[str, str]] = KNOBS

    fraction: float | None = None
    count: int | None = None
    over_select: float = 1.0

    def needed(self, peers: int) -> int:
        if peers == 0:
            return 0
        if self.count is not None:
            return min(self.count, peers)
        return share(self.fraction or 1.0, peers)

    def sample(self, peers: Sequence[PeerView], random: Random) -> Draw:
        needed = self.needed(len(peers))
        size = min(len(peers), share(self.over_select, needed)) if needed else 0
        return Draw(cohort=tuple(sorted(random.sample(_ids(peers), size))), needed=needed)


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """Each peer by itself with the same probability, which privacy accounting by subsampling assumes.

    The cohort's size is random and may be 0. Over-selection raises the probability and wants so many
    fewer of those drawn.
    """

    knobs: ClassVar[Mapping[str, str]] = KNOBS

    fraction: float | None = None
    over_select: float = 1.0

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        """A fraction, which is the probability, and no peer that every round needs."""
        table, aggregation = spec["sampling"], spec["aggregation"]
        if table["count"] is not None:
            yield Requirement(
                "poisson sampling takes a fraction: each peer is drawn by itself",
                {"sampling.count": None},
                key="sampling.count",
            )
        if table["over_select"] > 1:
            yield Requirement(
                "poisson sampling draws each peer by itself and cannot over-select; raise fraction instead",
                {"sampling.over_select": 1.0},
                key="sampling.over_select",
            )
        if aggregation["trusted_peer"] is not None:
            yield Requirement(
                f"{aggregation['rule']} needs its trusted peer in every round, and poisson sampling draws each by "
                "itself",
                {"sampling.policy": "uniform"},
            )

    def needed(self, peers: int) -> int:
        return round((self.fraction or 1.0) * peers)

    def sample(self, peers: Sequence[PeerView], random: Random) -> Draw:
        probability = min(1.0, (self.fraction or 1.0) * self.over_select)
        cohort = tuple(peer for peer in _ids(peers) if random.random() < probability)
        needed = share(1 / self.over_select, len(cohort)) if cohort else 0
        return Draw(cohort=cohort, needed=needed)


def _ids(peers: Sequence[PeerView]) -> list[str]:
    return sorted(peer.peer_id for peer in peers)
