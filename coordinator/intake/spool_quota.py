"""Room on the disk for updates that arrive."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from coordinator.intake.spool import Spool
from muster.errors import StorageError
from protos.v1.tensors_pb2 import BlobHeader

CHECKS_MAX = 256  # between two looks at what lies in the spool


class SpoolQuota:
    """What bodies under way will still need counts as taken, so that many that start at once all find their end."""

    def __init__(self, *, spool: Spool, spool_bytes_max: int, disk_reserve_bytes: int) -> None:
        self._spool = spool
        self.spool_bytes_max = spool_bytes_max
        self.disk_reserve_bytes = disk_reserve_bytes
        self._receiving: dict[str, int] = {}  # assignment id -> size of the whole body
        # Nothing that lies in the spool or is to come there is larger, unless the checks are used up.
        self._bound_bytes = 0
        self._checks_left = 0

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
        spool, size = self._spool, header.size_bytes
        if self._fits_surely(size):
            return
        held = spool.bytes_held_but(header.assignment_id)
        to_come = sum(
            max(0, each - spool.bytes_held(assignment_id))
            for assignment_id, each in self._receiving.items()
            if assignment_id != header.assignment_id
        )
        if held + to_come + size > self.spool_bytes_max:
            raise StorageError(
                "storage.spool_full",
                f"an update of {size} bytes does not fit the spool, which holds {held} bytes and awaits {to_come}",
                cause=f"coordinator.spool_bytes_max is {self.spool_bytes_max}",
                fix="raise it if the disk has room; the peer goes on by itself",
            )
        self._bound_bytes, self._checks_left = held + to_come + size, CHECKS_MAX
        free = spool.free_bytes()
        missing = size - spool.bytes_held(header.assignment_id)
        if missing + to_come + self.disk_reserve_bytes > free:
            raise StorageError(
                "storage.disk_full",
                f"an update of which {missing} bytes are to come does not fit in {spool.folder}, "
                f"with {free} free, {to_come} of them awaited by others",
                cause=f"the coordinator keeps {self.disk_reserve_bytes} bytes for its database",
                fix="free disk space; the peer goes on by itself",
            )

    def _fits_surely(self, size: int) -> bool:
        """Whether the body fits even if nothing has left the spool since it was looked at; looking costs a call to the
        system for each body in it."""
        bound = self._bound_bytes + size
        if not self._checks_left or bound > self.spool_bytes_max:
            return False
        if bound + self.disk_reserve_bytes > self._spool.free_bytes():
            return False
        self._bound_bytes, self._checks_left = bound, self._checks_left - 1
        return True
