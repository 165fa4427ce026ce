"""The random numbers of stochastic rounding."""

from __future__ import annotations

import numpy as np
from numpy.random import PCG64DXSM
from numpy.typing import NDArray


def dither(seed: int, size: int) -> NDArray[np.uint16]:
    """[size] uniform 16-bit numbers: the words of numpy's PCG64DXSM seeded with `seed`, low bits first.

    (number + 1/2) / 2^16 stands for a uniform number in (0, 1): a probability is met to within 2^-17. numpy
    promises that the words of a bit generator never change.
    """
    return PCG64DXSM(seed).random_raw(-(-size // 4)).view(np.uint16)[:size]
