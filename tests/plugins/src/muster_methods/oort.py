"""Who is useful and quick is drawn more often: a sampler that goes by what it has seen of each peer.

    utility_i = mean |loss_i| * (T / t_i)^alpha  if t_i > T, else mean |loss_i|

t_i is how long the peer's work took, T the time that most take. A share of the cohort explores those that were never
asked; whoever was drawn `rounds_max` times makes room. The losses are those that peers report, not of each example.

Lai, Zhu, Madhyastha, Chowdhury, Oort: Efficient Federated Learning via Guided Participant Selection, OSDI 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import ClassVar

from coordinator.engine import Draw, PeerView


@dataclass(frozen=True, kw_only=True)
class Oort:
    knobs: ClassVar[Mapping[str, str]] = {
        "explore": "share of the cohort for peers that were never asked, 0 to 1",
        "alpha": "how much a slow peer counts less; 0: not at all",
        "rounds_max": "updates after which a peer is drawn only where others are missing",
    }
    count: int | None = None
    explore: float = 0.1
    alpha: float = 2.0
    rounds_max: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.explore <= 1:
            raise ValueError(f"explore must be 0 to 1, not {self.explore}")

    def needed(self, peers: int) -> int:
        return min(self.count or peers, peers)

    def sample(self, peers: Sequence[PeerView], random: Random) -> Draw:
        ordered = sorted(peers, key=lambda peer: peer.peer_id)
        needed = self.needed(len(ordered))
        fresh = [peer for peer in ordered if not peer.history.asked]
        known = [peer for peer in ordered if peer.history.asked]
        typical = median([_seconds(peer) for peer in known] or [0.0])
        random.shuffle(fresh)
        known.sort(key=lambda peer: -self._utility(peer, typical))
        explores = max(needed - len(known), round(self.explore * needed))
        chosen = [*fresh[:explores], *known][:needed]
        return Draw(cohort=tuple(sorted(peer.peer_id for peer in chosen)), needed=needed)

    def _utility(self, peer: PeerView, typical: float) -> float:
        history = peer.history
        if history.delivered >= self.rounds_max or not history.losses:
            return 0.0
        usefulness = sum(map(abs, history.losses)) / len(history.losses)
        seconds = _seconds(peer)
        return usefulness * (typical / seconds) ** self.alpha if seconds > typical else usefulness


def _seconds(peer: PeerView) -> float:
    return (peer.history.train_seconds or 0.0) + (peer.history.upload_seconds or 0.0)
