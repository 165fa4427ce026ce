"""nf4: 16 levels that suit normally distributed values, times a scale shared by 64; 4.25 bits a coordinate.

The levels are quantiles of the normal distribution: eight at evenly spaced probabilities above 1/2, seven
below, and zero, divided by the largest; the outermost probability lies halfway between those that 15 and 16
evenly spaced levels leave outside (Dettmers et al., "QLoRA", 2023, appendix E). See `_levels` for the body.
"""

from __future__ import annotations

from statistics import NormalDist

from compressors.quantizers.levels import LevelCodec

_OUTERMOST = 1 - (1 / 30 + 1 / 32) / 2


def _quantiles(count: int) -> list[float]:
    """`count` levels above zero, ascending to 1."""
    step = (_OUTERMOST - 0.5) / count
    found = [NormalDist().inv_cdf(0.5 + step * k) for k in range(1, count + 1)]
    return [level / found[-1] for level in found]


class Nf4(LevelCodec):
    spelling = "nf4"
    source = "Dettmers et al. 2023 (QLoRA), appendix E"
    block = 64
    levels = (*(-level for level in reversed(_quantiles(7))), 0.0, *_quantiles(8))
