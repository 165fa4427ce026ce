"""The folder of updates that are still arriving: one file an assignment."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

_SUFFIX = re.compile(r"\.part(\.header(\.tmp)?)?$")


class Spool:
    """The folder of uploads that are not complete or not admitted yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, assignment_id: str) -> Path:
        return self.folder / f"{assignment_id}.part"

    def bytes_held(self, assignment_id: str) -> int:
        return _size(self.path(assignment_id))

    def bytes_held_but(self, assignment_id: str) -> int:
        """Of all other updates."""
        own = self.path(assignment_id)
        return sum(_size(path) for path in self.folder.iterdir() if path != own)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free

    def sweep(self, is_live: Callable[[str], bool]) -> None:
        """Drops what belongs to assignments that are not live."""
        for path in self.folder.iterdir():
            if not is_live(_SUFFIX.sub("", path.name)):
                path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it has become a blob meanwhile
        return 0
