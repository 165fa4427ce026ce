"""How many threads a worker may take on this machine, whose cores it may have to share.

Each peer daemon sits in a slot, a locked file of its user's runtime folder, from which the kernel takes it with the
process, however that ends. So daemons of one user see each other; those of other users, and those in other containers,
do not, and have a limit of their own (a CPU quota, an affinity) or are told one (`threads`).
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from muster.files.folders import private_file, private_folder

SLOTS_MAX = 256
# What the libraries beneath torch and numpy read when they are loaded.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Those that this process may run on, and no more than its CPU quota."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(own, *(math.ceil(quota) for quota in _quotas(_CGROUP, Path("/proc/self/cgroup"))), own))


def said_threads(environment: Mapping[str, str]) -> int | None:
    """The number of threads that the environment of this process sets, by the libraries' own variables."""
    first = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None


def share(cores: int, neighbours: int) -> int:
    """Of one worker among so many, itself among them."""
    return max(1, cores // max(1, neighbours))


class Slots:
    """The peers of this user on this machine. A folder that cannot be used counts as empty."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or _runtime_folder()
        self._held = -1

    def take(self) -> Self:
        """Until `release`, or the end of the process."""
        with contextlib.suppress(OSError):
            private_folder(self._folder)
            for number in range(SLOTS_MAX):
                if self._held < 0 and (descriptor := self._try(number, fcntl.LOCK_EX)) is not None:
                    self._held = descriptor
        return self

    def release(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def count(self) -> int:
        """Slots that are taken, the own one among them."""
        taken = 0
        for path in self._folder.glob("peer-*.slot"):
            with contextlib.suppress(OSError, ValueError):
                number = int(path.stem.removeprefix("peer-"))
                descriptor = self._try(number, fcntl.LOCK_SH)
                if descriptor is None:
                    taken += 1
                else:
                    os.close(descriptor)
        return taken

    def _try(self, number: int, kind: int) -> int | None:
        """The slot's file, locked; None if another process holds it."""
        descriptor = private_file(self._folder / f"peer-{number}.slot", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor


def _runtime_folder() -> Path:
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own) / "muster" if own else Path(tempfile.gettempdir()) / f"muster-{os.getuid()}"


def _quotas(root: Path, membership: Path) -> Iterable[float]:
    """CPU quotas, in cores, of this process's control group and those above it, version 2 and 1."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root if not controllers else root / "cpu"
        inner = base / name.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(base):
                yield from _quota(folder)


def _quota(folder: Path) -> Iterable[float]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        if quota.isdigit() and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return
