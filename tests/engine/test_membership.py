from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from coordinator.engine import invariants
from coordinator.engine.state import PeerStatus, PeerView, Transition
from coordinator.membership import detector as membership
from coordinator.membership.detector import (
    Connected,
    Disconnected,
    Drain,
    Enrolled,
    HeartbeatSeen,
    Limits,
    Members,
    Prune,
    Quarantine,
    Release,
    Remove,
    Tick,
)

LIMITS = Limits(suspect_seconds=5, lost_seconds=20)


class Cluster:
    """One peer, "a", as the detector sees it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.members = Members()
        self.log: list[Transition] = []
        self.send(Enrolled(peer_id="a", secret_hash="hash", device="cpu", muster_version="0.1.0"))

    def send(self, event: Any, after: float = 0.0) -> str:
        self.now += after
        decision = membership.decide(self.members, event, self.now, LIMITS)
        for transition in decision.transitions:
            old = self.members.get(transition.peer_id)
            assert transition.before == (str(old.status) if old is not None else None)
            new = decision.members.get(transition.peer_id)
            assert new is not None
            assert transition.values["state"] == new.status
            assert transition.values["reason"] == new.reason == transition.reason
        self.members = decision.members
        self.log += decision.transitions
        self.newest = decision.transitions
        return decision.reason

    @property
    def a(self) -> membership.Member:
        member = self.members.get("a")
        assert member is not None
        return member

    def connect(self) -> str:
        return self.send(Connected(peer_id="a"))

    def beat(self, after: float = 0.0, epoch: int | None = None) -> str:
        return self.send(HeartbeatSeen(peer_id="a", epoch=epoch or self.a.epoch), after)

    def tick(self, after: float) -> str:
        return self.send(Tick(), after)

    def drop(self, *, goodbye: bool = False, epoch: int | None = None) -> str:
        return self.send(Disconnected(peer_id="a", epoch=epoch or self.a.epoch, goodbye=goodbye))


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_a_peer_enrols_once_and_is_pending_until_it_comes(cluster: Cluster) -> None:
    assert cluster.a.status is PeerStatus.PENDING
    assert cluster.newest[0].values["secret_hash"] == "hash"
    assert cluster.newest[0].values["enrolled_at"] == 100.0
    again = Enrolled(peer_id="a", secret_hash="hash", device="cpu", muster_version="0.1.0")
    assert (cluster.send(again), cluster.newest) == ("a is enrolled already", ())
    newer = Enrolled(peer_id="a", secret_hash="hash", device="cuda:0", muster_version="0.2.0")
    assert cluster.send(newer) == "a enrolled again, with Muster 0.2.0 on cuda:0"
    assert cluster.tick(1e6) == "everybody is as before"


def test_heartbeats_keep_a_peer_active(cluster: Cluster) -> None:
    assert cluster.connect() == "a connected with session 1"
    for _ in range(50):
        cluster.beat(after=4.9)
        cluster.tick(0)
        assert cluster.newest == ()
    assert cluster.members.views == {"a": PeerView(peer_id="a", status=PeerStatus.ACTIVE, connected=True)}


def test_missed_heartbeats_make_a_peer_suspect_and_then_lost(cluster: Cluster) -> None:
    cluster.connect()
    assert cluster.tick(4.9) == "everybody is as before"
    assert cluster.tick(0.1) == "a has sent no heartbeat for 5.0 s"
    assert (cluster.a.status, cluster.newest[0].kind) == (PeerStatus.SUSPECT, "peer.suspected")
    assert membership.gone(cluster.newest) == ()
    cluster.tick(14.9)
    assert cluster.a.status is PeerStatus.SUSPECT
    assert cluster.tick(0.1) == "a has given no sign of life for 20.0 s"
    assert (cluster.a.status, cluster.a.connected) == (PeerStatus.LOST, False)
    assert membership.gone(cluster.newest) == (("a", "a has given no sign of life for 20.0 s"),)


def test_a_suspect_that_speaks_again_is_active(cluster: Cluster) -> None:
    cluster.connect()
    cluster.tick(10)
    assert cluster.beat() == "a sends heartbeats again"
    assert cluster.a.status is PeerStatus.ACTIVE
    cluster.tick(4.9)
    assert cluster.newest == ()


def test_a_broken_connection_makes_suspect_at_once_and_coming_back_active(cluster: Cluster) -> None:
    cluster.connect()
    assert cluster.drop() == "a lost its connection"
    assert (cluster.a.status, cluster.a.connected) == (PeerStatus.SUSPECT, False)
    assert [each.kind for each in cluster.newest] == [""]
    assert cluster.connect() == "a is back with session 2"
    assert [each.kind for each in cluster.newest] == [""]  # the epoch is durable, and nobody need read of it
    assert (cluster.a.status, cluster.a.epoch) == (PeerStatus.ACTIVE, 2)
    assert cluster.drop(goodbye=True) == "a left"
    assert cluster.newest[0].kind == "peer.suspected"
    cluster.tick(20)
    assert cluster.a.status is PeerStatus.LOST
    cluster.connect()
    assert (cluster.a.status, cluster.a.epoch) == (PeerStatus.ACTIVE, 3)


def test_what_an_older_session_says_is_ignored(cluster: Cluster) -> None:
    cluster.connect()
    cluster.connect()
    assert cluster.drop(epoch=1) == "session 1 of a is over; the newest is session 2"
    assert cluster.a.connected
    cluster.tick(6)
    assert cluster.beat(epoch=1) == "session 1 of a is over; the newest is session 2"
    assert cluster.a.status is PeerStatus.SUSPECT
    cluster.drop()
    assert cluster.beat() == "session 2 of a has ended"
    assert cluster.a.status is PeerStatus.SUSPECT


def test_a_draining_peer_gets_no_new_work_and_is_lost_when_gone(cluster: Cluster) -> None:
    cluster.connect()
    assert cluster.send(Drain(peer_id="a", reason="new disk")) == (
        "a is draining and gets no new work: new disk"
    )
    assert membership.gone(cluster.newest) == ()  # it keeps what it holds
    cluster.drop()
    assert cluster.a.status is PeerStatus.DRAINING
    assert cluster.connect() == "a is back with session 2, still DRAINING"
    assert cluster.drop(goodbye=True) == "a was draining and left"
    assert cluster.a.status is PeerStatus.LOST
    assert cluster.send(Drain(peer_id="a")) == "a is LOST and gets no work anyway"
    cluster.connect()
    assert cluster.a.status is PeerStatus.ACTIVE


def test_a_draining_peer_that_falls_silent_is_lost(cluster: Cluster) -> None:
    cluster.connect()
    cluster.send(Drain(peer_id="a"))
    cluster.tick(19)
    assert cluster.a.status is PeerStatus.DRAINING
    cluster.tick(1)
    assert cluster.a.status is PeerStatus.LOST


def test_quarantine_holds_across_sessions_until_release(cluster: Cluster) -> None:
    cluster.connect()
    reason = cluster.send(Quarantine(peer_id="a", reason="its updates look forged"))
    assert reason == ("a is quarantined: it gets no work, its updates are refused: its updates look forged")
    assert membership.gone(cluster.newest) == (("a", reason),)
    assert cluster.send(Quarantine(peer_id="a")) == "a is QUARANTINED already"
    assert cluster.drop() == "a lost its connection and stays QUARANTINED"
    cluster.tick(1000)
    cluster.connect()
    assert cluster.a.status is PeerStatus.QUARANTINED
    assert cluster.send(Drain(peer_id="a")) == "a is QUARANTINED and gets no work anyway"
    assert cluster.send(Release(peer_id="a")) == ("a is released from being QUARANTINED: it gets work again")
    assert cluster.a.status is PeerStatus.ACTIVE
    assert cluster.send(Release(peer_id="a")) == "a is ACTIVE: there is nothing to release it from"


def test_a_release_while_away_leaves_the_detector_to_its_work(cluster: Cluster) -> None:
    cluster.send(Quarantine(peer_id="a"))
    cluster.send(Release(peer_id="a"))
    assert cluster.a.status is PeerStatus.PENDING  # it has never been here
    cluster.connect()
    cluster.send(Drain(peer_id="a"))
    cluster.drop()
    assert cluster.send(Release(peer_id="a")) == "a is released from being DRAINING: it is not connected"
    assert cluster.a.status is PeerStatus.SUSPECT
    cluster.tick(20)
    assert cluster.a.status is PeerStatus.LOST


@pytest.mark.parametrize(
    "event",
    [
        Connected(peer_id="a"),
        Enrolled(peer_id="a", secret_hash="hash", device="cpu", muster_version="9"),
        Release(peer_id="a"),
        Drain(peer_id="a"),
        Quarantine(peer_id="a"),
        HeartbeatSeen(peer_id="a", epoch=1),
        Disconnected(peer_id="a", epoch=1),
        Remove(peer_id="a"),
    ],
)
def test_a_removed_peer_never_comes_back(cluster: Cluster, event: Any) -> None:
    cluster.connect()
    assert cluster.send(Remove(peer_id="a", reason="sold")) == "a is removed, and its name is free: sold"
    assert membership.gone(cluster.newest)
    assert cluster.send(event).startswith("a was removed")
    assert (cluster.newest, cluster.a.status, cluster.a.connected) == ((), PeerStatus.REVOKED, False)


def test_a_removed_peers_name_is_free_for_another(cluster: Cluster) -> None:
    cluster.connect()
    cluster.send(Remove(peer_id="a"))
    told = cluster.send(
        Enrolled(peer_id="a", secret_hash="other", device="cuda", muster_version="9"), after=1
    )
    assert told == "a enrolled as a new peer, under the name of one that was removed"
    assert cluster.newest[0].values["enrolled_at"] == cluster.now
    assert (cluster.a.status, cluster.a.secret_hash, cluster.a.epoch) == (PeerStatus.PENDING, "other", 1)
    # What the session of the one that was removed still says is not said by the new one.
    assert cluster.beat(epoch=1) == "session 1 of a has ended"
    assert cluster.connect() == "a is back with session 2"
    assert cluster.a.status is PeerStatus.ACTIVE


def test_nobody_acts_without_being_enrolled(cluster: Cluster) -> None:
    assert cluster.send(Connected(peer_id="z")) == "z is not enrolled"
    assert cluster.members.get("z") is None


@dataclass(frozen=True)
class Row:
    peer_id: str
    state: str
    epoch: int
    reason: str = "as it was"
    secret_hash: str = "hash"
    device: str = "cpu"
    muster_version: str = "0.1.0"
    instance: str = ""


def test_after_a_restart_everybody_has_time_to_come_back(cluster: Cluster) -> None:
    rows = [Row("a", "ACTIVE", 3), Row("b", "SUSPECT", 1), Row("c", "REVOKED", 2), Row("d", "ACTIVE", 1)]
    cluster.members = Members.restored(rows, now=cluster.now)
    assert cluster.a.secret_hash == "hash"
    assert not any(view.connected for view in cluster.members.views.values())
    cluster.send(Connected(peer_id="d"))
    assert cluster.connect() == "a is back with session 4"
    cluster.members = Members.restored(rows, now=cluster.now)
    assert cluster.tick(5) == (
        "a is not back 5.0 s after the coordinator's start; d is not back 5.0 s after the coordinator's start"
    )
    cluster.tick(15)
    states = [view.status for view in cluster.members.views.values()]
    assert states == [PeerStatus.LOST, PeerStatus.LOST, PeerStatus.REVOKED, PeerStatus.LOST]


def test_the_log_of_all_this_passes_the_checker(cluster: Cluster) -> None:
    cluster.connect()
    cluster.drop()
    cluster.connect()
    cluster.send(Quarantine(peer_id="a"))
    cluster.send(Release(peer_id="a"))
    cluster.send(Remove(peer_id="a"))
    cluster.send(Enrolled(peer_id="a", secret_hash="other", device="cpu", muster_version="9"))
    cluster.connect()

    @dataclass(frozen=True)
    class Logged:
        sequence: int
        at: float
        kind: str
        run_id: str
        round: int
        assignment_id: str
        peer_id: str
        data: Any

    log = [
        Logged(n, t.at, t.kind, t.run_id, t.round, t.assignment_id, t.peer_id, t.data)
        for n, t in enumerate(each for each in cluster.log if each.kind)
    ]
    assert invariants.check(log) == []
    swapped = [log[0], log[3], log[1]]
    assert "session 1 of a follows session 2" in invariants.check(swapped)[1]


def test_who_enrolled_and_never_came_is_forgotten(cluster: Cluster) -> None:
    cluster.send(Enrolled(peer_id="b", secret_hash="hash", device="cpu", muster_version="0.1.0"))
    cluster.connect()
    assert cluster.send(Prune(), after=LIMITS.pending_seconds - 1) == "nobody is to be forgotten"
    members = cluster.members
    decision = membership.decide(members, Prune(), cluster.now + 1, LIMITS)
    (forgotten,) = decision.transitions
    assert (forgotten.kind, forgotten.peer_id, forgotten.before, forgotten.removes) == (
        "peer.forgotten",
        "b",
        "PENDING",
        True,
    )
    assert "has not come once" in forgotten.reason
    assert set(decision.members.peers) == set(decision.members.views) == {"a"}


def lost(cluster: Cluster, *names: str) -> None:
    for name in names:
        cluster.send(Enrolled(peer_id=name, secret_hash="hash", device="cpu", muster_version="0.1.0"))
        cluster.send(Connected(peer_id=name))
        cluster.send(Disconnected(peer_id=name, epoch=1), after=1)
    cluster.tick(LIMITS.lost_seconds)


def test_who_is_removed_or_lost_for_long_takes_no_room(cluster: Cluster) -> None:
    lost(cluster, "b", "c")
    cluster.connect()
    assert membership.counted(cluster.members, cluster.now, LIMITS) == 3
    cluster.send(Remove(peer_id="b"))
    assert membership.counted(cluster.members, cluster.now, LIMITS) == 2
    assert membership.counted(cluster.members, cluster.now + LIMITS.away_seconds, LIMITS) == 1


def test_a_name_that_was_taken_over_and_not_used_takes_room_for_a_while(cluster: Cluster) -> None:
    cluster.connect()
    cluster.send(Remove(peer_id="a"))
    cluster.send(Enrolled(peer_id="a", secret_hash="other", device="cpu", muster_version="0.1.0"))
    assert membership.counted(cluster.members, cluster.now, LIMITS) == 1
    assert membership.counted(cluster.members, cluster.now + LIMITS.pending_seconds, LIMITS) == 0


@pytest.mark.parametrize(("peers_max", "left"), [(4, "abcd"), (3, "abd"), (2, "ab"), (1, "ab")])
def test_where_names_are_too_many_the_longest_gone_that_no_run_names_are_forgotten(
    cluster: Cluster, peers_max: int, left: str
) -> None:
    lost(cluster, "b", "c", "d")
    cluster.connect()
    limits = Limits(suspect_seconds=5, lost_seconds=20, peers_max=peers_max)
    prune = Prune(named=frozenset({"b"}))
    soon = membership.decide(cluster.members, prune, cluster.now + limits.away_seconds / 2, limits)
    assert soon.transitions == ()
    late = membership.decide(cluster.members, prune, cluster.now + limits.away_seconds, limits)
    assert sorted(late.members.peers) == list(left)
    assert all(each.kind == "peer.forgotten" and each.removes for each in late.transitions)
    assert all("too many names" in each.reason for each in late.transitions)


def test_a_new_start_is_seen_once_its_session_opens(cluster: Cluster) -> None:
    def enrol(instance: str) -> None:
        cluster.send(
            Enrolled(peer_id="a", secret_hash="hash", device="cpu", muster_version="0.1.0", instance=instance)
        )

    enrol("first")
    cluster.connect()
    assert cluster.members.views["a"].instance == "first"
    enrol("second")
    assert cluster.members.views["a"].instance == "first"
    cluster.beat(after=1)
    assert cluster.members.views["a"].instance == "first"
    cluster.connect()
    assert cluster.members.views["a"].instance == "second"


def test_a_sign_of_life_that_is_told_with_the_tick_counts(cluster: Cluster) -> None:
    cluster.connect()
    heard = {"a": cluster.now + LIMITS.suspect_seconds}
    assert cluster.send(Tick(heard=heard), after=LIMITS.suspect_seconds + 1) == "everybody is as before"
    cluster.send(Tick(heard=heard), after=LIMITS.suspect_seconds)
    assert cluster.a.status is PeerStatus.SUSPECT
    assert cluster.a.seen_at == heard["a"]


def test_only_those_whose_silence_means_something_are_watched(cluster: Cluster) -> None:
    assert dict(cluster.members.watched) == {}
    cluster.connect()
    assert set(cluster.members.watched) == {"a"}
    cluster.send(Quarantine(peer_id="a"))
    assert dict(cluster.members.watched) == {}
