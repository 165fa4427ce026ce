"""A log file that keeps the newest few megabytes, and a thread that fills it from a pipe."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from muster.files.folders import append_private, private_folder

LOG_BYTES_MAX = 4 << 20  # on disk, both halves together
TAIL_BYTES_MAX = 8 << 10  # in memory, for error messages
READ_BYTES = 64 << 10


class LogFile:
    """Appends to `path`; at half the limit it becomes `path` + ".1" and the one of that name before it goes.

    Safe from several threads. A full disk loses log lines and nothing else.
    """

    def __init__(self, path: Path, *, bytes_max: int = LOG_BYTES_MAX) -> None:
        self.path = path
        self._older = path.with_name(path.name + ".1")
        self._half = bytes_max // 2
        self._tail = bytearray()
        self._lock = threading.Lock()
        if not path.parent.is_dir():  # one that is there is its owner's to narrow, or to let workers pass
            private_folder(path.parent)

    def write(self, data: bytes) -> None:
        with self._lock:
            self._tail += data[-TAIL_BYTES_MAX:]
            del self._tail[:-TAIL_BYTES_MAX]
            with contextlib.suppress(OSError):
                if self.path.exists() and self.path.stat().st_size + len(data) > self._half:
                    self.path.replace(self._older)
                with append_private(self.path) as file:
                    file.write(data)

    def tail(self) -> str:
        """The last lines since `forget`."""
        with self._lock:
            return self._tail.decode(errors="replace")

    def forget(self) -> None:
        """Starts the tail anew; the file keeps what it has."""
        with self._lock:
            self._tail.clear()

    def follow(self, fd: int, name: str) -> threading.Thread:
        """Starts a thread that writes what comes out of the pipe `fd`, and closes it at its end.

        A thread, so that a task that floods its output slows itself down and never the event loop.
        """
        thread = threading.Thread(target=self._pump, args=(fd,), name=name, daemon=True)
        thread.start()
        return thread

    def _pump(self, fd: int) -> None:
        try:
            while data := os.read(fd, READ_BYTES):
                self.write(data)
        finally:
            os.close(fd)
