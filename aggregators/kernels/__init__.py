"""What aggregation does to every coordinate, at the speed at which memory gives them.

Machine code is made for the number of rows at hand, by LLVM; where that cannot be, torch does the same.
"""

from aggregators.kernels.columns import mix, prepare, reduce
from aggregators.kernels.inner import gram
from aggregators.kernels.mixing import Mixing
from aggregators.kernels.native import machine
from aggregators.kernels.stages import Middle, Nearest, Stage, Vote


def available() -> bool:
    """Whether machine code can be made here; without it all is done by torch, several times slower."""
    return machine() is not None


__all__ = ["Middle", "Mixing", "Nearest", "Stage", "Vote", "available", "gram", "mix", "prepare", "reduce"]
