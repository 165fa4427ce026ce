"""Watching other processes from outside: anonymous memory and processor time, by /proc (Linux)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """A process and all that descend from it, itself first."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += children(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended while we looked
    return found


def anonymous_bytes(pid: int) -> int:
    """RssAnon plus VmSwap of one process; mapped files do not count."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "VmSwap:")):
                total += int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return total


def processor_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes and of their children that have ended."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


class MemoryWatch:
    """Samples the anonymous memory of process trees, and of processes without their children, every 20 ms and keeps
    each one's peak."""

    def __init__(self, trees: dict[str, int], alone: dict[str, int]) -> None:
        self._trees = trees
        self._alone = alone
        self.peaks = dict.fromkeys((*trees, *alone), 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> dict[str, int]:
        found = {name: sum(map(anonymous_bytes, children(root))) for name, root in self._trees.items()}
        return found | {name: anonymous_bytes(pid) for name, pid in self._alone.items()}

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for name, size in self.sample().items():
                self.peaks[name] = max(self.peaks[name], size)
