"""Where in the user's own code an exception came from: a traceback has forty lines, and one of them is theirs."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

from muster.runtime.installation import PACKAGES

_FRAME = re.compile(r'^ *File "(?P<path>.+)", line (?P<line>\d+), in (?P<where>.+)$', re.MULTILINE)
_LIBRARIES = re.compile(r"[/\\](site|dist)-packages[/\\]|^<")
_ROOT = Path(__file__).resolve().parents[2]
_SKIPPED = (
    *(str(_ROOT / package) for package in PACKAGES),
    *filter(None, (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))),
)


def own_frame(traceback: str) -> str:
    """The deepest frame of a traceback of this machine that is not in Muster, torch, another installed package or
    Python itself: "/home/ann/flowers.py, line 40, in train_data"; "" if there is none.

    Where tracebacks follow each other, the last one counts: it is of the exception that was not handled.
    """
    last = traceback.rpartition("Traceback (most recent call last):")[2]
    for found in reversed([*_FRAME.finditer(last)]):
        path = found["path"]
        if not _LIBRARIES.search(path) and not path.startswith(_SKIPPED):
            return f"{path}, line {found['line']}, in {found['where']}"
    return ""
