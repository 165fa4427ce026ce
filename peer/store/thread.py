"""The peer store as the event loop sees it: every call runs in one thread of its own, in the order of the
calls.

A disk that is busy for a second then delays the assignment that waits for it and no heartbeat; and since the
order is kept, a rollback always comes after whatever the assignment had still asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import ParamSpec, TypeVar

from muster.runtime.randomness import MACHINE
from peer.store.store import PeerStore

P = ParamSpec("P")
T = TypeVar("T")


class StoreThread:
    """Made by `open`."""

    def __init__(self, store: PeerStore, thread: ThreadPoolExecutor) -> None:
        self.store = store
        self._thread = thread

    @classmethod
    async def open(cls, folder: Path, random: Random = MACHINE) -> StoreThread:
        """Raises what `PeerStore` raises."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="peer-store")
        try:
            store = await asyncio.get_running_loop().run_in_executor(thread, PeerStore, folder, random)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(store, thread)

    async def do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`await store.do(store.store.commit, assignment_id)`. A cancelled wait does not undo the call."""
        work = partial(call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """After all calls that were made."""
        await self.do(self.store.close)
        self._thread.shutdown(wait=True)
