"""Loops compiled to machine code at their first call, then kept on disk where that can be.

A compiled loop releases the interpreter's lock and knows nothing of bounds: its caller hands it arrays of the
right sizes, checked before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """numba's compilation of a loop without the interpreter's lock, cached on disk where that can be written."""
    njit = cast(Any, numba).njit
    try:
        loop = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the module's folder nor the user's own can be written to
        loop = njit(nogil=True)(function)
    return cast(Callable[P, R], loop)
