"""Files that survive: blobs by their digest, locked folders, room on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.lazy import reexport

if TYPE_CHECKING:
    from muster.files.blobs import BlobStore
    from muster.files.digests import digest_bytes

__all__ = ["BlobStore", "digest_bytes"]

__getattr__, __dir__ = reexport(
    __name__,
    {
        "muster.files.blobs": ("BlobStore",),
        "muster.files.digests": ("digest_bytes",),
    },
)
