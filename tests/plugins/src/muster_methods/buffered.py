"""Buffered asynchronous aggregation: the peers never wait for each other.

    new version = version + sum_{i in buffer} s(tau_i) / c  delta_i,      s(tau) = 1 / sqrt(1 + tau)

c updates that are there make a version, whichever round asked for them; tau is how many versions were made since the
one that an update starts from. So many works are under way at any time (`concurrency`): who is done is asked again, or
another in its place.

Nguyen, Malik, Zhan et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from coordinator.engine import standings
from coordinator.engine.schedule import (
    Action,
    CloseRound,
    Finish,
    OfferWork,
    OpenRound,
    Refuse,
    SkipRound,
    Wait,
)
from coordinator.engine.state import PeerView, RoundState, RoundStatus, RunState
from methods import Requirement
from muster.seeds import derive_random
from muster.spec.model import RunSpec
from muster.work import TRAIN, Work


@dataclass(frozen=True, kw_only=True)
class Buffered:
    several_bases: ClassVar[bool] = True
    knobs: ClassVar[Mapping[str, str]] = {
        "size": "updates that make a version; more: fewer versions, each of less noise",
        "concurrency": "works under way at a time; more: faster and staler; 0: as many as there are peers",
    }
    spec: RunSpec
    refuse: Refuse
    size: int = 10
    concurrency: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.concurrency < 0:
            raise ValueError("size must be 1 or more, and concurrency not negative")

    def requires(self, spec: Mapping[str, Any]) -> Iterator[Requirement]:
        if spec["aggregation"]["rule"] != "mean" or spec["aggregation"]["pre"]:
            yield Requirement(
                "the buffered schedule weighs each update by its staleness, which only a mean without a pre-rule does",
                {"aggregation.rule": "mean", "aggregation.pre": []},
            )

    def next(self, state: RunState, now: float, peers: Mapping[str, PeerView]) -> Sequence[Action]:
        for round_ in state.rounds.values():
            if round_.status is RoundStatus.AGGREGATING:
                return (Wait(until=None, reason=f"version {round_.base_version + 1} is being made"),)
            return (self._fill(state, round_, now, peers),)
        if state.committed >= self.spec.rounds:
            return (Finish(reason=f"all {self.spec.rounds} versions are made"),)
        return (self._open(state, now, peers),)

    def _open(self, state: RunState, now: float, peers: Mapping[str, PeerView]) -> Action:
        present = standings.eligible(state, peers)
        if state.model is None or len(present) < max(1, self.spec.round.peers_min):
            return Wait(until=None, reason=f"the buffer waits for peers: {len(present)} are there")
        if state.rest is not None:
            return Wait(until=state.rest.until, reason="the buffer waits for a moment after a skipped round")
        return OpenRound(
            cohort=tuple(present),
            needed=self.size,
            quorum=self.size,
            base_version=state.model.version,
            deadline_at=now + self.spec.round.deadline_seconds,
            reason=f"a buffer for {self.size} updates is open; whoever is free starts from version "
            f"{state.model.version}",
        )

    def _fill(self, state: RunState, round_: RoundState, now: float, peers: Mapping[str, PeerView]) -> Action:
        number, works = round_.number, round_.assignments
        there = (*state.carried.delivered, *works.delivered)
        busy = {state.carried[name].peer_id for name in state.carried.live}
        busy |= {works[name].peer_id for name in works.live}
        free = [peer for peer in standings.eligible(state, peers) if peer not in busy]
        free = [peer for peer in free if self._may_ask(round_, peer)]
        if len(there) >= self.size:
            return self._close(round_, there, "is full")
        places = (self.concurrency or len(peers)) - len(busy)
        if free and places > 0:
            random = derive_random(self.spec.seed, "buffered", number, len(works))
            return OfferWork(
                round=number,
                peer_ids=tuple(sorted(random.sample(free, min(places, len(free))))),
                work=Work(role=TRAIN, base=round_.base_version),
                reason="there is a place",
            )
        due = round_.deadline_at if round_.deadline_at is not None else math.inf
        if there and (now >= due or not busy):
            return self._close(round_, there, "is as full as it gets")
        if now >= due:
            return SkipRound(round=number, reason=f"nothing has come for the buffer of round {number}")
        return Wait(until=due, reason=f"the buffer has {len(there)} of {self.size} updates")

    def _may_ask(self, round_: RoundState, peer_id: str) -> bool:
        """Once from each version, and again after a failure that was nobody's fault."""
        newest = round_.assignments.newest(peer_id)
        attempts = self.spec.round.attempts_max
        return newest is None or (newest.retry and newest.attempt < attempts)

    def _close(self, round_: RoundState, there: Sequence[Any], how: str) -> CloseRound:
        gaps = {each.assignment_id: round_.base_version - each.work.base for each in there}
        return CloseRound(
            round=round_.number,
            reason=f"the buffer {how}: {len(there)} updates, up to {max(gaps.values())} versions old",
            weights={name: 1.0 / math.sqrt(1.0 + gap) / len(there) for name, gap in gaps.items()},
            work_goes_on=True,
        )
