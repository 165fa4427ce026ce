"""Who may write: of several coordinators on one database, the one that has claimed it last.

A claim is an epoch number in a row of the database. It is checked in the transaction of each write, so a coordinator
that was replaced (a second one was started on its database, or it was taken for dead) can change nothing any more,
whatever it still believes. That one is alive at all, and waiting for it to die, is no matter of the fence.
"""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from coordinator.store.faults import fenced
from coordinator.store.rows import Fence
from coordinator.store.tables import COORDINATOR, FENCES
from muster.texts import storable

_ROW = FENCES.c.name == COORDINATOR


def take(connection: Connection, holder: str, at: float) -> Fence:
    """The next claim; all that are older no longer hold."""
    epoch: int = connection.execute(select(FENCES.c.epoch).where(_ROW)).scalar_one_or_none() or 0
    values = {"epoch": epoch + 1, "holder": storable(holder), "taken_at": at}
    if epoch:
        connection.execute(update(FENCES).where(_ROW).values(**values))
    else:
        connection.execute(insert(FENCES).values(name=COORDINATOR, **values))
    return Fence(epoch=epoch + 1)


def check(connection: Connection, fence: Fence | None, where: str) -> None:
    """Raises `StorageError` "store.fenced" if somebody has taken a newer one. Without a fence anybody may write."""
    if fence is None:
        return
    row = connection.execute(select(FENCES.c.epoch, FENCES.c.holder).where(_ROW)).one_or_none()
    if row is None or row.epoch != fence.epoch:
        raise fenced(where, "" if row is None else row.holder)
