"""Which folders hold what is installed, or Python's own: code that is not edited between two runs."""

from __future__ import annotations

import sysconfig
from pathlib import Path

LIBRARY_FOLDERS = frozenset({"site-packages", "dist-packages"})
_PYTHONS = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def is_installed(place: str | Path) -> bool:
    """Of a file or a folder, as Python tells it."""
    path = Path(place)
    return bool(LIBRARY_FOLDERS & {*path.parts}) or any(path.is_relative_to(python) for python in _PYTHONS)
