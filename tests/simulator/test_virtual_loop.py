"""Time that costs nothing, and work that takes its turn from a seed."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from muster.runtime import clock
from simulator.virtual_loop import EPOCH_SECONDS, StalledError, VirtualLoop, run


def test_a_day_is_over_at_once() -> None:
    async def main() -> list[float]:
        began = clock.now()
        await asyncio.sleep(86_400.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await asyncio.Event().wait()
        return [began, clock.now()]

    real = time.monotonic()
    assert run(main()) == pytest.approx([EPOCH_SECONDS, EPOCH_SECONDS + 86_403.0])
    assert time.monotonic() - real < 5.0


def test_timers_ring_in_their_order() -> None:
    async def main() -> list[str]:
        order: list[str] = []

        async def after(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            order.append(name)

        await asyncio.gather(after(3e6, "last"), after(0.5, "first"), after(0.5 + 1e-3, "second"))
        return order

    assert run(main()) == ["first", "second", "last"]


def test_what_can_never_come_is_told() -> None:
    async def main() -> None:
        asyncio.current_task().set_name("the one that waits")  # type: ignore[union-attr]  # in a task
        await asyncio.Event().wait()

    with pytest.raises(StalledError, match="the one that waits"):
        run(main())


def test_executors_take_turns_by_the_seed_and_each_keeps_its_order() -> None:
    async def main() -> list[tuple[str, int]]:
        done: list[tuple[str, int]] = []
        loop = asyncio.get_running_loop()
        pools = {name: ThreadPoolExecutor(1) for name in "abc"}
        jobs = [
            loop.run_in_executor(pool, done.append, (name, number))
            for number in range(5)
            for name, pool in pools.items()
        ]
        await asyncio.gather(*jobs)
        return done

    first = run(main(), seed=1)
    assert first == run(main(), seed=1)
    assert first != run(main(), seed=2)
    for name in "abc":
        assert [number for found, number in first if found == name] == list(range(5))


def test_what_work_raises_and_work_that_is_given_up() -> None:
    async def main() -> list[str]:
        done: list[str] = []
        loop = asyncio.get_running_loop()
        given_up = loop.run_in_executor(None, done.append, "given up")
        given_up.cancel()
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        await asyncio.to_thread(done.append, "done")
        return done

    assert run(main()) == ["done"]


def test_times_of_a_later_loop_follow_those_of_an_earlier_one() -> None:
    async def main() -> float:
        await asyncio.sleep(10.0)
        return clock.now()

    first = run(main())
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(epoch_seconds=first)) as runner:
        assert runner.run(main()) == first + 10.0


async def test_the_time_of_day_follows_the_machine() -> None:
    assert clock.now() == pytest.approx(time.time(), abs=5.0)
