"""Ids, secrets and jitter: drawn from a source that is handed in, the machine's own unless a simulation gives a seeded
one. What a run computes does not come from here but from its spec's seed (`muster.seeds`)."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from random import Random, SystemRandom

MACHINE = SystemRandom()  # its draws cannot be predicted


def hex_id(source: Random, size_bytes: int) -> str:
    """A unique name, which is no secret."""
    return source.randbytes(size_bytes).hex()


def secret_text(source: Random, size_bytes: int = 32) -> str:
    """A secret, in letters that a file, a URL and a header take."""
    return urlsafe_b64encode(source.randbytes(size_bytes)).rstrip(b"=").decode()
