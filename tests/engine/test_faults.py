"""f as a share of the cohort, and the peer that a rule trusts, as the schedule deals with them."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.engine.state import PeerStatus, RoundStatus

TRUSTING = {"rule": "fltrust", "trusted_peer": "c"}


# -- f -------------------------------------------------------------------------------------------------------


def test_the_opening_of_a_round_tells_f_and_where_it_comes_from(make_world: Any) -> None:
    world = make_world(peers="abcdefg", aggregation={"rule": "median", "faults": 0.3})
    assert world.reasons("round.opened") == [
        "round 1 is open: 7 of 7 peers are asked, 7 updates are wanted, 7 are a quorum; f is 2 (0.3 of a cohort of 7)"
    ]
    world = make_world(peers="abc", aggregation={"rule": "median", "faults": 1})
    assert world.reasons("round.opened")[0].endswith("3 are a quorum; f is 1 (declared)")


def test_lost_and_rejected_peers_never_lower_f(make_world: Any) -> None:
    share = {"rule": "median", "faults": 0.3}
    world = make_world(peers="abcdefg", more_than_2f=True, aggregation=share, round={"quorum": 0.3})
    assert world.state.rounds[1].quorum == 5  # 0.3 of 7 are 3, but f stays 2
    world.deliver("abcd")
    for peer_id in "efg":
        world.fail(peer_id, retry=False)
    (skipped,) = world.reasons("round.skipped")
    assert skipped.startswith("round 1 cannot reach its quorum any more: 4 of 7 updates are delivered")
    assert "; the rule needs n >= 5: n is 4; f is 2 (0.3 of a cohort of 7)" in skipped
    assert world.state.model.version == 0


def test_f_is_a_share_of_all_that_are_asked(make_world: Any) -> None:
    """Over-selection asks more than it wants: all the liars may be the first to deliver."""
    tables: dict[str, Any] = {
        "aggregation": {"rule": "median", "faults": 0.25},
        "sampling": {"count": 4, "over_select": 2.0},
    }
    world = make_world(peers="abcdefgh", more_than_2f=True, **tables)
    assert world.state.rounds == {}
    assert world.state.reason == (
        "round 1 waits for more peers, 8 are active and connected: "
        "the rule needs n >= 5: n is 4; f is 2 (0.25 of a cohort of 8)"
    )
    assert make_world(peers="abcdefg", more_than_2f=True, **tables).state.rounds[1].needed == 4  # f is 1


# -- the trusted peer ------------------------------------------------------------------------------------------


def test_a_round_waits_for_its_trusted_peer_and_always_asks_it(make_world: Any) -> None:
    world = make_world(peers="abde", aggregation=TRUSTING, sampling={"count": 2}, rounds=5)
    assert world.state.reason == "round 1 waits for its trusted peer 'c'"
    world.join("c")
    drawn: set[str] = set()
    for number in range(1, 6):
        round_ = world.state.rounds[number]
        assert (len(round_.cohort), round_.needed) == (3, 3)
        assert "c" in round_.cohort
        drawn.update(round_.cohort)
        world.play_round("".join(round_.cohort))
    assert len(drawn) > 3  # the others are drawn


@pytest.mark.parametrize("grace_seconds", [0, 5])
def test_a_round_does_not_close_before_its_trusted_peer_has_delivered(
    make_world: Any, grace_seconds: float
) -> None:
    world = make_world(
        peers="abcd", aggregation=TRUSTING, round={"quorum": 0.5, "grace_seconds": grace_seconds}
    )
    world.deliver("ab")
    assert world.kinds() == ["assignment.delivered"]
    assert world.state.rounds[1].grace_until is None
    assert world.tick(20).transitions == ()
    world.deliver("c")
    if grace_seconds:
        world.tick(grace_seconds)
    assert world.aggregates() == [("a", "b", "c")]


def test_without_its_trusted_peer_a_round_is_skipped_at_its_deadline(make_world: Any) -> None:
    world = make_world(peers="abcd", aggregation=TRUSTING, round={"quorum": 0.5})
    world.deliver("abd")
    world.tick(60)
    assert world.reasons("round.skipped") == [
        "round 1 is without the update of its trusted peer 'c' at its deadline: "
        "3 of 4 updates are delivered, 2 are a quorum"
    ]


def test_a_round_that_cannot_have_its_trusted_peer_is_skipped_at_once(make_world: Any) -> None:
    world = make_world(peers="abcd", aggregation=TRUSTING, round={"quorum": 0.5})
    world.deliver("a")
    world.fail("c", retry=True)
    assert world.work("c").attempt == 2  # asked again
    world.fail("c", retry=False)
    (skipped,) = world.reasons("round.skipped")
    assert skipped.startswith(
        "round 1 cannot have the update of its trusted peer 'c' any more: 1 of 4 updates are delivered"
    )
    assert "signal 9" in skipped


def test_a_trusted_peer_that_is_away_may_come_back(make_world: Any) -> None:
    world = make_world(peers="abc", aggregation=TRUSTING, round={"quorum": 0.5})
    world.leave("c")
    world.deliver("ab")
    assert world.state.rounds[1].status is RoundStatus.OPEN
    world.join("c")
    world.deliver("c")
    assert world.aggregates() == [("a", "b", "c")]
    world.aggregated()
    world.leave("c", PeerStatus.QUARANTINED)
    (skipped,) = world.reasons("round.skipped")
    assert skipped.startswith("round 2 cannot have the update of its trusted peer 'c' any more")
    assert world.state.reason == "round 3 waits for its trusted peer 'c'"
