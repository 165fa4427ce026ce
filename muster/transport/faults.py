"""Faults for `MemoryTransport`: what can befall a message, and a seeded hook that draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from muster.seeds import derive_random
from muster.transport.base import Method


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One message on its way."""

    address: str  # of the server
    caller: str  # whose call it is, and
    callee: str  # who answers it: the names of their transports
    method: Method[Any, Any]
    to_server: bool
    index: int  # 0 is the first message of the call in this direction

    def between(self, one: str, other: str) -> bool:
        """Whether the message passes between the two, in either direction."""
        return {self.caller, self.callee} == {one, other}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to a message on its way."""

    delay_seconds: float = 0.0
    drop: bool = False  # the connection breaks before the message arrives, and all calls on it with it


FaultHook = Callable[[Passage], Fault | None]


class SeededFaults:
    """Draws for every message: it drops its connection with `drop_probability`, and is late by a time uniform
    in [0, `delay_seconds_max`]. The same seed and the same order of messages give the same faults."""

    def __init__(self, seed: int, *, drop_probability: float = 0.0, delay_seconds_max: float = 0.0) -> None:
        self._random = derive_random(seed, "transport.faults")
        self._drop_probability = drop_probability
        self._delay_seconds_max = delay_seconds_max

    def __call__(self, passage: Passage) -> Fault | None:  # all messages fare alike
        drop = self._random.random() < self._drop_probability
        return Fault(delay_seconds=self._random.uniform(0.0, self._delay_seconds_max), drop=drop)
