"""The other user as whom worker processes run, so that the kernel keeps a task out of what is the daemon's.

Only root may name one. A user with some of root's capabilities may not: they would pass to the worker with its start.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import muster.worker
from muster.errors import ConfigError

PROBE_SECONDS_MAX = 60.0
# Of each folder that is to be read: the first one on the way that is closed, or itself.
_PROBE = """
import json, os, sys
closed = {}
for path in sys.argv[1:]:
    way, folder = [], path
    while folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
        way.insert(0, folder)
    found = [each for each in way if not os.access(each, os.X_OK)]
    if not found and os.path.lexists(path) and not os.access(path, os.R_OK | os.X_OK):
        found = [path]
    if found:
        closed[path] = found[0]
print(json.dumps(closed))
"""


@dataclass(frozen=True, kw_only=True)
class WorkerUser:
    """The user that worker processes run as."""

    name: str
    uid: int
    gid: int
    home: str

    def start_options(self) -> dict[str, Any]:
        """What `subprocess.Popen` needs to start a process as this user, without any other group."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def environment(self, daemons: Mapping[str, str]) -> dict[str, str]:
        """The daemon's variables as this user's: its home, and no folders of the daemon's user."""
        kept = {name: value for name, value in daemons.items() if not name.startswith("XDG_")}
        return {**kept, "HOME": self.home, "USER": self.name, "LOGNAME": self.name}


def find_user(wanted: str | int, setting: str) -> WorkerUser:
    """By name or uid. Raises `ConfigError` "worker.user_unknown", "worker.user_is_root" or "worker.user_refused"."""
    said = str(wanted)
    try:
        entry = pwd.getpwuid(int(said)) if said.isascii() and said.isdigit() else pwd.getpwnam(said)
        user = WorkerUser(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir)
    except (KeyError, OverflowError):
        raise ConfigError(
            "worker.user_unknown",
            f"{setting} is {said!r}, and this machine has no such user",
            fix=f"make one (useradd --system {said if not said.isdigit() else 'NAME'}), or name one that there is",
        ) from None
    if user.uid == 0 or user.gid == 0:
        raise ConfigError(
            "worker.user_is_root",
            f"{setting} is {said!r}, which is root or of root's group: that keeps tasks from nothing",
            fix="name a user that has no rights besides, and a group that has no other member",
        )
    if os.geteuid() != 0:
        raise ConfigError(
            "worker.user_refused",
            f"{setting} is {said!r}, and only root may start processes as another user",
            cause=f"this daemon runs as uid {os.geteuid()}",
            fix=f"start it as root, or leave {setting} out: the workers then run as the daemon's own user",
        )
    return user


def check_reach(user: WorkerUser, folders: Sequence[Path], setting: str) -> None:
    """Blocking, for the start of a daemon. Raises `ConfigError` "worker.user_refused" or "worker.user_cannot_read"
    for what would make every job of every task fail."""
    wanted = [Path(muster.worker.__file__).parents[1], *(folder.absolute() for folder in folders)]
    try:
        told = subprocess.run(
            [sys.executable, "-I", "-c", _PROBE, *map(str, wanted)],
            **user.start_options(),
            cwd="/",
            env={},
            capture_output=True,
            check=True,
            timeout=PROBE_SECONDS_MAX,
        ).stdout
        closed: dict[str, str] = json.loads(told)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(
            "worker.user_refused",
            f"{setting}: no Python can be started as user {user.name!r}",
            cause=_why_not(error),
            fix="install Muster where that user can run it (such as /opt), and leave the daemon root's capabilities "
            "CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID and SETUID",
        ) from error
    for path, at in closed.items():
        raise ConfigError(
            "worker.user_cannot_read",
            f"{setting}: user {user.name!r} cannot read {path}",
            cause=f"{at} is closed to it",
            fix=f"open it (chmod o+{'rx' if at == path else 'x'} {at}), or put what it needs elsewhere",
        )


def _why_not(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return str(error.stderr, errors="replace")[-500:]
    real = Path(os.path.realpath(sys.executable))
    shut = [str(folder) for folder in reversed(real.parents) if not folder.stat().st_mode & 0o001]
    return f"{error}" + (f"; {shut[0]} is closed to others, and {real} lies in it" if shut else "")
