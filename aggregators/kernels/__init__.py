"""What aggregation does to every coordinate, at the speed at which memory gives them.

Machine code is made for the number of rows at hand, by LLVM; where that cannot be, torch does the same.
"""

from aggregators.kernels.columns import mix, reduce
from aggregators.kernels.inner import gram
from aggregators.kernels.mixing import Mixing
from aggregators.kernels.stages import Middle, Nearest, Stage, Vote

__all__ = ["Middle", "Mixing", "Nearest", "Stage", "Vote", "gram", "mix", "reduce"]
