"""Loops compiled to machine code at their first call, then kept on disk beside the module.

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
    jit: Any = cast(Any, numba).njit(cache=True, nogil=True)
    return cast(Callable[P, R], jit(function))
