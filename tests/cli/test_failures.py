from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cli.failures import by_cause, cause_line


def entry(number: int, peer_id: str = "ward-1", **more: Any) -> dict[str, Any]:
    return {
        "at": 1000.0 + number,
        "kind": "assignment.lost",
        "round": number,
        "peer_id": peer_id,
        "reason": f"{peer_id} failed its work for round {number}: no such file",
        "message": "no such file",
        "error_id": "worker.failed",
        "traceback": "",
        **more,
    }


def test_the_same_cause_in_many_rounds_is_one_line() -> None:
    (cause,) = by_cause(entry(number) for number in range(1, 6))
    assert cause_line(cause).plain.endswith(
        "assignment.lost      ward-1, 5 times, rounds 1 to 5: no such file [worker.failed]"
    )


def test_peers_that_fail_alike_share_it() -> None:
    found = by_cause([entry(1, "a"), entry(1, "b"), entry(2, "c"), entry(2, "d"), entry(3, "e")])
    assert [cause_line(each).plain.partition("lost      ")[2] for each in found] == [
        "a, b, c, 2 more, 5 times, rounds 1 to 3: no such file [worker.failed]"
    ]


def test_without_a_message_the_reason_is_told_of_the_peer() -> None:
    late = [
        entry(
            n, p, kind="assignment.expired", message="", error_id="", reason=f"round {n} closes; {p} is late"
        )
        for n, p in ((1, "a"), (2, "a"), (2, "b"))
    ]
    (cause,) = by_cause(late)
    assert (cause.peers, cause.rounds, cause.told) == (
        ["a", "b"],
        [1, 2, 2],
        "round 2 closes; the peer is late",
    )


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from("abc"), st.sampled_from(["x", "y", "z 1", "z 2"])))
)
def test_nothing_is_lost_and_no_cause_comes_twice(found: list[tuple[int, str, str]]) -> None:
    causes = by_cause(entry(number, peer_id, message=message) for number, peer_id, message in found)
    assert sum(cause.times for cause in causes) == len(found)
    assert len(causes) == len({message.partition(" ")[0] for _, _, message in found})
    for cause in causes:
        assert cause_line(cause).plain
