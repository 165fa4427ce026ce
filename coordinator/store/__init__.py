"""The durable store: SQLite in the data folder, or PostgreSQL."""

from coordinator.store.rows import (
    AssignmentRow,
    EventRow,
    ModelRow,
    PeerRecord,
    PeerRow,
    RoundRow,
    RunRow,
    Transfer,
    WarningRow,
)
from coordinator.store.store import Store

__all__ = [
    "AssignmentRow",
    "EventRow",
    "ModelRow",
    "PeerRecord",
    "PeerRow",
    "RoundRow",
    "RunRow",
    "Store",
    "Transfer",
    "WarningRow",
]
