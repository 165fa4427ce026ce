"""The network of a simulation: what befalls each message, drawn from a seed or said by a script."""

from __future__ import annotations

from muster.transport.faults import Fault, Passage, SeededFaults


class Network:
    """A fault hook for a `MemoryHub`. Each message is late by up to `delay_seconds_max` and breaks its connection with
    `drop_probability`; none passes between two that are apart."""

    def __init__(
        self, seed: int = 0, *, drop_probability: float = 0.0, delay_seconds_max: float = 0.0
    ) -> None:
        self._seeded = SeededFaults(
            seed, drop_probability=drop_probability, delay_seconds_max=delay_seconds_max
        )
        self._quiet = not (drop_probability or delay_seconds_max)
        self._apart: set[frozenset[str]] = set()

    def part(self, one: str, other: str) -> None:
        """From now on a message between the two breaks its connection."""
        self._apart.add(frozenset((one, other)))

    def join(self, one: str, other: str) -> None:
        """They can reach each other again."""
        self._apart.discard(frozenset((one, other)))

    def __call__(self, passage: Passage) -> Fault | None:
        if self._apart and frozenset((passage.caller, passage.callee)) in self._apart:
            return Fault(drop=True)
        return None if self._quiet else self._seeded(passage)
