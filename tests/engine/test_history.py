"""What samplers are told of a peer's work, and in which role they may have it take part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from coordinator.engine import sampling
from coordinator.engine.history import WORKS_MAX
from coordinator.engine.state import AssignmentProgressed, AssignmentStatus, Offer, PeerView


def _takes(world: Any, peer_id: str, *, trains: float, uploads: float, loss: float) -> None:
    for status, seconds in (("TRAINING", trains), ("UPLOADING", uploads)):
        name = world.work(peer_id).assignment_id
        world.send(AssignmentProgressed(run_id="run", assignment_id=name, status=AssignmentStatus(status)))
        world.now += seconds
    world.deliver(peer_id, {"loss": loss})


def test_a_peers_history_tells_times_losses_and_counts(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=3)
    _takes(world, "a", trains=4.0, uploads=2.0, loss=0.5)
    world.fail("b", retry=True)
    world.deliver("b")
    world.aggregated()
    a, b = sampling.views(world.state, world.peers, ["a", "b"])
    assert (a.history.train_seconds, a.history.upload_seconds, a.history.losses) == (4.0, 2.0, (0.5,))
    assert a.history.bytes_per_second == a.history.works[0].size_bytes / 2.0
    assert (a.history.asked, a.history.delivered, a.history.last_round) == (2, 1, 2)
    assert (b.history.asked, b.history.delivered, b.history.failed) == (3, 1, 1)
    assert b.history.train_seconds is None  # it never said when it began
    world.restart()
    assert sampling.views(world.state, world.peers, ["a"])[0].history == a.history


def test_a_history_is_bounded(make_world: Any) -> None:
    world = make_world(peers="ab", rounds=3 * WORKS_MAX)
    for number in range(1, 2 * WORKS_MAX):
        _takes(world, "a", trains=1.0, uploads=1.0, loss=float(number))
        world.deliver("b")
        world.aggregated()
    history = world.state.history["a"]
    assert history.losses == tuple(float(n) for n in range(WORKS_MAX, 2 * WORKS_MAX))
    assert history.delivered == 2 * WORKS_MAX - 1


@dataclass(frozen=True)
class Roles:
    """All take part, one of them in another role."""

    def needed(self, peers: int) -> int:
        return peers

    def sample(self, peers: Sequence[PeerView], random: Random) -> sampling.Draw:
        ids = tuple(sorted(peer.peer_id for peer in peers))
        return sampling.Draw(cohort=ids, needed=len(ids), roles={random.choice(ids): "anchor"})


def test_a_sampler_may_give_a_peer_another_role_which_it_keeps(make_world: Any) -> None:
    world = make_world(peers="abc", rounds=2, started=False)
    world.schedule._sampler = Roles()
    world.start()
    roles = {offer.assignment.peer_id: offer.assignment.work.role for offer in world.ordered(Offer)}
    assert sorted(roles.values()) == ["anchor", "train", "train"]
    (anchor,) = (peer_id for peer_id, role in roles.items() if role == "anchor")
    world.restart()
    for peer_id in "abc":
        world.join(peer_id)
    world.fail(anchor, retry=True)
    assert world.work(anchor).work.role == "anchor"
    world.play_round("abc")
    assert world.state.counted[anchor, "anchor"] == 1
