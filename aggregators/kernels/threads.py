"""Column ranges on as many threads as torch may use.

The threads are those of torch's own OpenMP team, where torch has one: its workers spin for some milliseconds
after each operation, and threads of ours would have to share the cores with them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from threading import Thread

import torch

from aggregators.kernels import native, team_code

_VALUES_LEAST = 1 << 17  # to a thread: some 10 microseconds' work, as much as it costs to wake it
_PIECES = 4  # to a thread, so that one on a busy core does less of them

Fixed = tuple[int, int, int, int]
"""The first four arguments of a kernel."""


def over_columns(kernel: native.Kernel, fixed: Fixed, columns: int, values: int, *, align: int) -> None:
    """Calls `kernel(*fixed, start, stop)` on ranges that make up 0 to `columns`, and waits.

    `values` are read in all. The result must not depend on the ranges, which begin at multiples of `align`;
    none is shorter than that, unless `columns` is.
    """
    threads = max(1, min(torch.get_num_threads(), values // _VALUES_LEAST, columns // align))
    if threads == 1:
        kernel.call(*fixed, 0, columns)
        return
    team = _team()
    pieces = threads if team is None else min(_PIECES * threads, columns // align)
    bounds = [columns // align * piece // pieces * align for piece in range(pieces)] + [columns]
    if team is None:
        others = [
            Thread(target=kernel.call, args=(*fixed, *bounds[piece : piece + 2]), daemon=True)
            for piece in range(1, pieces)
        ]
        for other in others:
            other.start()
        kernel.call(*fixed, *bounds[:2])
        for other in others:
            other.join()
        return
    places = (ctypes.c_int64 * len(bounds))(*bounds)
    work = (ctypes.c_int64 * 8)(kernel.address, *fixed, ctypes.addressof(places), pieces, 0)
    team(ctypes.addressof(work), threads)


@lru_cache(maxsize=1)
def _team() -> Callable[[int, int], None] | None:
    """Has `team_code` run on so many of torch's threads; None where they cannot be reached."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel if torch.backends.openmp.is_available() else None
    except (
        AttributeError,
        OSError,
        TypeError,
    ):  # another OpenMP, or a system that looks names up differently
        return None
    share = native.compiled(team_code.MODULE, arguments=1)
    if parallel is None or share is None:
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return lambda work, threads: parallel(share.address, work, threads, 0)
