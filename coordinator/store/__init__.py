"""What a coordinator remembers: in SQLite or PostgreSQL, or for simulations in memory."""

from coordinator.store.faults import Trouble, trouble
from coordinator.store.memory import MemoryStore
from coordinator.store.protocol import Store
from coordinator.store.rows import (
    AssignmentRow,
    EventRow,
    Fence,
    ModelRow,
    PeerRecord,
    PeerRow,
    RoundRow,
    RunRow,
    Transfer,
    WarningRow,
)
from coordinator.store.sql import SqlStore

__all__ = [
    "AssignmentRow",
    "EventRow",
    "Fence",
    "MemoryStore",
    "ModelRow",
    "PeerRecord",
    "PeerRow",
    "RoundRow",
    "RunRow",
    "SqlStore",
    "Store",
    "Transfer",
    "Trouble",
    "WarningRow",
    "trouble",
]
