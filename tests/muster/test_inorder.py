"""Order, look-ahead, errors and tidiness of calls on several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from muster.errors import StorageError
from muster.runtime.inorder import AHEAD, THREADS_MAX, in_order

THREADS = 4


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("in-order")]


def test_results_come_in_order_whichever_is_done_first() -> None:
    done = [threading.Event() for _ in range(THREADS)]

    def backwards(number: int) -> int:
        if number < THREADS - 1:
            assert done[number + 1].wait(30)
        if number < THREADS:
            done[number].set()
        return number * number

    assert list(in_order(backwards, 50)) == [number * number for number in range(50)]


def test_calls_run_side_by_side_and_never_too_far_ahead() -> None:
    begun: list[int] = []
    together = threading.Barrier(THREADS)

    def call(number: int) -> int:
        begun.append(number)
        if number < THREADS:
            together.wait(30)  # broken if they are not in as many threads
        return number

    results = in_order(call, 100)
    for given in range(100):
        assert next(results) == given
        assert max(begun) <= given + AHEAD * THREADS
    assert sorted(begun) == list(range(100))


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_call_is_made_here(count: int) -> None:
    here = threading.current_thread()
    assert list(in_order(lambda _: threading.current_thread(), count)) == [here] * count


def test_one_thread_is_this_one() -> None:
    torch.set_num_threads(1)
    assert set(in_order(lambda _: threading.current_thread(), 5)) == {threading.current_thread()}


def test_an_error_comes_in_its_place_as_it_was_and_ends_all() -> None:
    called: list[int] = []

    def call(number: int) -> int:
        called.append(number)
        if number == 5:
            raise StorageError("disk.full", "no room")
        return number

    results, given = in_order(call, 1000), list[int]()
    with pytest.raises(StorageError, match="no room"):
        given.extend(results)
    assert given == [0, 1, 2, 3, 4]
    assert max(called) <= 5 + AHEAD * THREADS
    assert list(results) == []


def test_closed_it_waits_for_what_is_under_way_and_begins_nothing_more() -> None:
    under_way, called = set[int](), list[int]()

    def call(number: int) -> int:
        called.append(number)
        under_way.add(number)
        torch.randn(1 << 16).sort()
        under_way.remove(number)
        return number

    results = in_order(call, 1000)
    assert next(results) == 0
    results.close()
    assert not under_way
    assert len(called) <= 1 + AHEAD * THREADS


def test_torch_has_one_thread_there_and_as_many_as_before_elsewhere() -> None:
    assert set(in_order(lambda _: torch.get_num_threads(), 9)) == {1}
    assert torch.get_num_threads() == THREADS
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [THREADS]


def test_a_thread_that_cannot_be_started_is_told_and_hangs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, 0

    def refused(thread: threading.Thread) -> None:
        nonlocal started
        started += 1
        if started == THREADS - 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(in_order(str, 100))


def test_of_many_cores_some_are_left() -> None:
    torch.set_num_threads(4 * THREADS_MAX)
    assert len(set(in_order(lambda _: threading.get_ident(), 1000))) <= THREADS_MAX
