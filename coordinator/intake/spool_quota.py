"""Room on the disk for updates that arrive."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from muster.errors import StorageError
from protos.v1.tensors_pb2 import BlobHeader

if TYPE_CHECKING:
    from coordinator.service import Coordinator


class SpoolQuota:
    """What bodies under way will still need counts as taken, so that many that start at once all find their end."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._receiving: dict[str, int] = {}  # assignment id -> size of the whole body

    @contextmanager
    def taken(self, header: BlobHeader) -> Generator[None]:
        """Keeps room for one body while it arrives. Raises as `check`."""
        self.check(header)
        self._receiving[header.assignment_id] = header.size_bytes
        try:
            yield
        finally:
            del self._receiving[header.assignment_id]

    def check(self, header: BlobHeader) -> None:
        """Raises `StorageError` "storage.spool_full", "storage.disk_full": both pass when others are done."""
        coordinator = self._coordinator
        config, size = coordinator.config, header.size_bytes
        own = coordinator.spool / f"{header.assignment_id}.part"
        held = sum(map(_size, (path for path in coordinator.spool.iterdir() if path != own)))
        to_come = sum(
            max(0, each - coordinator.bytes_held(assignment_id))
            for assignment_id, each in self._receiving.items()
            if assignment_id != header.assignment_id
        )
        if held + to_come + size > config.spool_bytes_max:
            raise StorageError(
                "storage.spool_full",
                f"an update of {size} bytes does not fit the spool, which holds {held} bytes and awaits {to_come}",
                cause=f"coordinator.spool_bytes_max is {config.spool_bytes_max}",
                fix="raise it if the disk has room; the peer goes on by itself",
            )
        free = coordinator.free_bytes()
        missing = size - _size(own)
        if missing + to_come + config.disk_reserve_bytes > free:
            raise StorageError(
                "storage.disk_full",
                f"an update of which {missing} bytes are to come does not fit in {coordinator.spool}, "
                f"with {free} free, {to_come} of them awaited by others",
                cause=f"the coordinator keeps {config.disk_reserve_bytes} bytes for its database",
                fix="free disk space; the peer goes on by itself",
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it has become a blob meanwhile
        return 0
