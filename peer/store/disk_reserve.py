"""Room on this machine's disk, which is not Muster's alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from muster.errors import StorageError


@dataclass(frozen=True, kw_only=True)
class DiskReserve:
    """`reserve_bytes` of the folder's disk are left to others."""

    folder: Path
    reserve_bytes: int

    def check(self, size_bytes: int, what: str) -> None:
        """Raises `StorageError` "storage.disk_full" if so much would touch the reserve."""
        free = shutil.disk_usage(self.folder).free
        if size_bytes + self.reserve_bytes > free:
            raise StorageError(
                "storage.disk_full",
                f"{what} takes up to {size_bytes} bytes, for which there is no room in {self.folder}",
                cause=f"{free} bytes are free, and peer.disk_reserve_bytes keeps {self.reserve_bytes} of them",
                fix="free disk space, or give the peer another folder (peer.data_dir)",
            )
