"""The worker's own side: takes jobs from one pipe, tells on another, and dies with its parent.

Each message is one line of JSON. In: {"number", "job", "args"}. Out, with the same number: {"kind":
"progress", "share"}, and in the end one of {"kind": "done", "result"}, {"kind": "error", ...} (a
`MusterError`, whole) and {"kind": "failed", "exception", "message", "traceback"}. Standard output and error
are the task's own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import io
import json
import math
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from muster.texts import storable_tree
from muster.worker.frameworks import frameworks, preload
from muster.worker.outcomes import Job, attempt, failure

FRAMEWORKS_JOB, PRELOAD_JOB = "muster.frameworks", "muster.preload"  # which every worker has

PROGRESS_SECONDS_MIN = 0.1
PR_SET_PDEATHSIG = 1


class Child:
    """The worker's side of the pipes."""

    def __init__(self, commands: TextIO, events: TextIO) -> None:
        self._commands = commands
        self._events = events
        self._events_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._busy = threading.Lock()
        self._orphaned = False

    def serve(self, module: str) -> int:
        """Runs jobs one at a time in this thread until the parent closes the pipe; gives the exit status."""
        threading.Thread(target=self._listen, name="muster-commands", daemon=True).start()
        jobs: dict[str, Job] = {}
        broken: BaseException | None = None
        with self._busy:
            try:
                own = {FRAMEWORKS_JOB: frameworks, PRELOAD_JOB: preload}
                jobs = {**importlib.import_module(module).JOBS, **own}
                # What was imported stays. Left to the collector, it would be walked at every collection: with torch,
                # 0.2 s each.
                gc.freeze()
            except BaseException as error:  # reported with the first job
                broken = error
        while (message := self._inbox.get()) is not None:
            with self._busy:
                if self._orphaned:
                    return 0
                if broken is not None:
                    self._tell(message["number"], failure(broken))
                    return 1
                self._tell(message["number"], self._outcome(jobs, message))
        return 0

    def _outcome(self, jobs: Mapping[str, Job], message: dict[str, Any]) -> dict[str, Any]:
        try:
            return attempt(jobs, message["job"], message["args"], self._progress(message["number"]))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    def _progress(self, number: int) -> Callable[[float], None]:
        told_at = -math.inf

        def progress(share: float) -> None:
            nonlocal told_at
            now = time.monotonic()
            share = float(share)
            if now - told_at >= PROGRESS_SECONDS_MIN and math.isfinite(share):
                told_at = now
                self._tell(number, {"kind": "progress", "share": min(1.0, max(0.0, share))})

        return progress

    def _tell(self, number: int, message: dict[str, Any]) -> None:
        line = json.dumps({"number": number, **storable_tree(message)})
        with self._events_lock:
            self._events.write(line + "\n")
            self._events.flush()

    def _listen(self) -> None:
        for line in self._commands:
            self._inbox.put(json.loads(line))
        # The parent is gone, or wants no more results: a job under way ends here, with its processes.
        self._orphaned = True
        if not self._busy.acquire(blocking=False):
            end_group()
        self._inbox.put(None)
        self._busy.release()


def main(module: str, *, commands_fd: int, events_fd: int, stacks_fd: int, parent_pid: int) -> int:
    """The worker's process; gives its exit status."""
    die_with(parent_pid)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold a site's data
    for fd in (commands_fd, events_fd, stacks_fd):
        os.set_inheritable(fd, False)
    faulthandler.enable(stacks_fd, all_threads=True)
    faulthandler.register(signal.SIGUSR1, file=stacks_fd, all_threads=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # so that the last words before a SIGKILL are known
    with (
        open(commands_fd, encoding="utf-8") as commands,
        open(events_fd, "w", encoding="utf-8") as events,
    ):
        return Child(commands, events).serve(module)


def die_with(parent_pid: int) -> None:
    """On Linux the kernel kills this process with its parent, even if a job holds the interpreter and never
    lets go.

    Elsewhere the closed pipe does it (`Child._listen`).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before the call
            sys.exit(1)


def end_group() -> None:
    """Kills this process with all processes that it has started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
