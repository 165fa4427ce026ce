"""Waiting between attempts: exponential, with full jitter, so that peers do not come back all at once.

    delay = uniform(0, min(delay_max, delay_min * 2^attempt))

Marc Brooker, Exponential Backoff and Jitter, 2015 ("full jitter").
"""

from __future__ import annotations

from random import Random

DELAY_SECONDS_MIN = 0.1
DELAY_SECONDS_MAX = 10.0


class Backoff:
    def __init__(self, random: Random) -> None:
        self._random = random
        self._attempt = 0

    def next_delay(self) -> float:
        """Seconds to wait before the next attempt."""
        ceiling = min(DELAY_SECONDS_MAX, DELAY_SECONDS_MIN * 2.0**self._attempt)
        self._attempt = min(self._attempt + 1, 32)  # the ceiling is reached long before
        return self._random.uniform(0.0, ceiling)

    def reset(self) -> None:
        """After a success."""
        self._attempt = 0
