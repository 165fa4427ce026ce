"""The settings of a node: files, environment and flags, merged in layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.lazy import reexport

if TYPE_CHECKING:
    from muster.config.settings import CoordinatorConfig, PeerConfig

__all__ = ["CoordinatorConfig", "PeerConfig"]

__getattr__, __dir__ = reexport(
    __name__,
    {
        "muster.config.settings": (
            "CoordinatorConfig",
            "PeerConfig",
        ),
    },
)
