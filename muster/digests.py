"""Content digests (BLAKE3, hex) and chunk checksums (CRC-32C).

Measured on one core of a 2-core EPYC: BLAKE3 6.5 GB/s, SHA-256 1.8, CRC-32C 28: hashing stays below the cost of moving
the bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

import google_crc32c
from blake3 import blake3

CHUNK_BYTES = 1 << 20  # one gRPC message; see ARCHITECTURE.md, "The chunk"


def digest_bytes(data: bytes) -> str:
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
    return int(google_crc32c.value(data))
