"""The one seam between Muster and the code of a task: where jobs run.

Implementations: `muster.worker.host.WorkerHost` (a process for each scope; production), `simulator.inline_worker`
(in the caller's own process).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Worker(Protocol):
    """Runs one job at a time, in the order of the calls."""

    async def start(self) -> None:
        """Gets ready ahead of the first job."""
        ...

    async def run(
        self,
        job: str,
        args: Mapping[str, Any],
        *,
        timeout_seconds: float,
        scope: str = "",
        on_progress: Callable[[float], None] | None = None,
    ) -> dict[str, Any]:
        """What the job gives back; `scope` is the run that it belongs to, "" if to none. Raises the `MusterError` that
        the job raises, and `TaskError` "worker.failed", "worker.crashed", "worker.timeout", "worker.cancelled"."""
        ...

    def forget(self, scope: str) -> None:
        """The scope is over: what was loaded for it serves no other."""
        ...

    async def close(self) -> None:
        """A job that runs is cancelled; there will be no other."""
        ...
