"""Randomness, injected: every draw comes from a seed derived from names, never from a global generator."""

from __future__ import annotations

import random

from blake3 import blake3


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from the parts, the same on every machine: `derive_seed(spec.seed, "round", 3, peer_id)`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake3(text.encode()).digest(length=8), "little") >> 1


def derive_random(*parts: str | int) -> random.Random:
    return random.Random(derive_seed(*parts))
