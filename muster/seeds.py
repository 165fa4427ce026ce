"""Randomness, injected: every draw comes from a seed derived from names, never from a global generator."""

from __future__ import annotations

import random

from blake3 import blake3


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from the parts, the same on every machine: `derive_seed(spec.seed, "round", 3, peer_id)`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake3(text.encode()).digest(length=8), "little") >> 1


def assignment_seed(run_seed: int, role: str, round: int, peer_id: str) -> int:
    """Of a peer's work in a round. No attempt in it: a repeated attempt computes the same update."""
    return derive_seed(run_seed, role, round, peer_id)


def initial_seed(run_seed: int) -> int:
    """Of a run's version 0, which the coordinator and the peers draw alike."""
    return derive_seed(run_seed, "model")


def derive_random(*parts: str | int) -> random.Random:
    """A generator seeded by `derive_seed` of these parts."""
    return random.Random(derive_seed(*parts))
