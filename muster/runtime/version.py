"""Which Muster this is."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def muster_version() -> str:
    """The installed distribution's version; "unknown" where the source runs without being installed."""
    try:
        return metadata.version("muster-fl")
    except metadata.PackageNotFoundError:
        return "unknown"
