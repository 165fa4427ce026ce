"""Named places at which a test, or an operator's drill, makes a process die, fail or stall.

    MUSTER_FAILPOINT="round.committed.after:kill@2,spool.write:error,session.send:sleep:1.5"

Each entry is `name:action[:seconds][@nth]`: `kill` (SIGKILL to this very process), `error` (raises
`InternalError` "failpoint.error") or `sleep` (blocks the thread, 1 s unless told). With `@nth` it acts only
on the nth time that the place is reached in this process, else every time. Unset, a place costs one
dictionary look-up.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

from muster.errors import ConfigError, InternalError

VARIABLE = "MUSTER_FAILPOINT"

_ENTRY = re.compile(
    r"(?P<name>[\w.\-]+):(?P<action>kill|error|sleep)(?::(?P<seconds>\d+(?:\.\d+)?))?(?:@(?P<nth>[1-9]\d*))?"
)


@dataclass
class _Point:
    action: str
    seconds: float
    nth: int | None
    hits: int = 0


_armed: dict[str, _Point] | None = None  # None: the environment has not been looked at


def failpoint(name: str) -> None:
    """Does what the environment asks for at this place, as a rule nothing."""
    if _armed is None:
        arm(os.environ)
    if _armed and name in _armed:
        _hit(name, _armed[name])


def arm(environment: Mapping[str, str]) -> None:
    """Reads the variable anew and starts counting from nothing. Raises `ConfigError`
    "failpoint.malformed"."""
    global _armed  # noqa: PLW0603  # one per process, as the variable is
    armed: dict[str, _Point] = {}
    for entry in filter(None, (part.strip() for part in environment.get(VARIABLE, "").split(","))):
        found = _ENTRY.fullmatch(entry)
        if found is None or (found["seconds"] and found["action"] != "sleep"):
            raise ConfigError(
                "failpoint.malformed",
                f"{VARIABLE}: {entry!r} is not a failpoint",
                fix='write "NAME:kill", "NAME:error" or "NAME:sleep:SECONDS"; with "@N", only the Nth time',
            )
        armed[found["name"]] = _Point(
            action=found["action"],
            seconds=float(found["seconds"] or 1.0),
            nth=int(found["nth"]) if found["nth"] else None,
        )
    _armed = armed


def _hit(name: str, point: _Point) -> None:
    point.hits += 1
    if point.nth is not None and point.hits != point.nth:
        return
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "sleep":
        time.sleep(point.seconds)
    else:
        raise InternalError("failpoint.error", f"failpoint {name!r} failed as told", fix=f"unset {VARIABLE}")
