"""Content digests (BLAKE3, hex) and chunk checksums (CRC-32C).

Measured on one core of a 2-core EPYC: BLAKE3 6.5 GB/s, SHA-256 1.8, CRC-32C 28: hashing stays below the cost of moving
the bytes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import google_crc32c
from blake3 import blake3

from muster.errors import UsageError

_DIGEST = re.compile(r"[0-9a-f]{64}")

CHUNK_BYTES = 1 << 20  # one gRPC message; see ARCHITECTURE.md, "The chunk"


def checked_digest(text: str) -> str:
    """The text, if it is a digest, so that no other name from outside becomes a path. Raises `UsageError`
    "blob.digest_malformed"."""
    if not _DIGEST.fullmatch(text):
        raise UsageError("blob.digest_malformed", f"{text[:80]!r} is not a BLAKE3 digest in lower-case hex")
    return text


def digest_bytes(data: bytes) -> str:
    """BLAKE3, 64 hexadecimal digits."""
    return blake3(data).hexdigest()


def digest_file(path: Path) -> str:
    """Digest of a whole file, read in 1 MiB steps so that no more than that is held."""
    hasher = blake3()
    fd = os.open(path, os.O_RDONLY)
    try:
        while block := os.read(fd, CHUNK_BYTES):
            hasher.update(block)
    finally:
        os.close(fd)
    return hasher.hexdigest()


def checksum(data: bytes) -> int:
    """CRC-32C."""
    return int(google_crc32c.value(data))
