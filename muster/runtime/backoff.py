"""Waiting between attempts: exponential, with full jitter, so that those who were cut off together do not
come back together.

    delay = uniform(0, min(delay_seconds_max, delay_seconds_min * 2^attempt))

Marc Brooker, Exponential Backoff and Jitter, 2015 ("full jitter").
"""

from __future__ import annotations

from random import Random

from muster.runtime.randomness import MACHINE


class Backoff:
    """`random` defaults to the machine's own: peers that start alike must not wait alike. Tests give a seeded
    one."""

    def __init__(
        self,
        random: Random = MACHINE,
        *,
        delay_seconds_min: float = 0.1,
        delay_seconds_max: float = 10.0,
    ) -> None:
        self._random = random
        self._min = delay_seconds_min
        self._max = delay_seconds_max
        self._attempt = 0

    def next_delay(self) -> float:
        """Seconds to wait before the next attempt."""
        ceiling = min(self._max, self._min * 2.0**self._attempt)
        self._attempt = min(self._attempt + 1, 32)  # the ceiling is reached long before
        return self._random.uniform(0.0, ceiling)

    def reset(self) -> None:
        """After a success, or any progress."""
        self._attempt = 0

    def ease(self) -> None:
        """After a little progress: the next wait is short, if not the shortest."""
        self._attempt = min(self._attempt, 2)
