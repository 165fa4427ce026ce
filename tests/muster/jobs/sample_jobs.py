"""What the worker tests run: honest jobs, and each way in which a task can go wrong."""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muster.errors import ConfigError

Progress = Callable[[float], None]


def echo(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    return {"args": args, "pid": os.getpid(), "thread": threading.current_thread() is threading.main_thread()}


def look(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    return {"modules": sorted(sys.modules), "path": sys.path, "environment": dict(os.environ)}


def steps(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    for share in (float("nan"), -1.0, 0.5):
        progress(share)
        time.sleep(args["pause"])
    return {}


def speak(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    for number in range(args["lines"]):
        print(f"line {number} " + "x" * 90)
    return {}


def fail(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    print("about to fail")
    raise ValueError("no such column")


def stumble(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    raise ValueError("bad row in " + os.fsdecode(b"donn\xe9es.csv") + "\0")


def name(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    return {os.fsdecode(b"\xff"): [os.fsdecode(b"\xfe\x00")]}


def refuse(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    raise ConfigError("task.not_found", "no such task", cause="because", fix="name it", task="digits")


def leave(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    sys.exit(3)


def vanish(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    os._exit(args["status"])


def die(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    print("last words")
    os.kill(os.getpid(), signal.Signals[args["signal"]])
    return {}


def touch_null(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    ctypes.string_at(0)
    return {}


def hang(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    progress(0.0)
    turns = 0
    while True:
        turns += 1


def sleep_with_child(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Starts a process of its own, tells its pid through a file, and never ends."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(args["pid_file"]).write_text(str(child.pid))
    progress(0.0)
    time.sleep(600)
    return {}


def leave_child(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Crashes while a process that it started still holds its pipes."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def eat(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (512 << 20, resource.RLIM_INFINITY))
    return {"size": len(bytearray(2 << 30))}


def bad_result(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    return {"tensor": object()}


def rest(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    rested.append(True)
    return {}


def tell_rests(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    return {"pid": os.getpid(), "times": len(rested)}


def fetch(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    for name in args["modules"]:
        importlib.import_module(name)
    return {}


rested: list[bool] = []

JOBS = {
    job.__name__: job
    for job in (
        echo, look, fetch, rest, tell_rests, steps, speak, fail, refuse, leave, vanish, die, touch_null, hang,
        sleep_with_child, leave_child, eat, bad_result, stumble, name,
    )
}  # fmt: skip
