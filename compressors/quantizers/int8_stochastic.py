"""Block int8 by stochastic rounding: floor(x / s + u), u uniform in (0, 1)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from compressors.core.compiled import compiled
from compressors.core.scratch import scratch
from compressors.quantizers.blocks import Floats, block_peaks
from compressors.quantizers.dither import dither

UNIT = np.float32(2.0**-16)
LEVEL_MAX = np.float32(127)


def encode_blocks(values: Floats, seed: int, block: int, scale_min: float) -> bytes:
    """The body of `compressors.quantizers.int8`: scales max|x| / 127, zero below `scale_min`; then the levels."""
    scales = block_peaks(values, block).view(np.float32) / LEVEL_MAX
    scales[scales < scale_min] = 0
    inverses = np.zeros_like(scales)
    np.divide(np.float32(1), scales, out=inverses, where=scales > 0)
    levels = scratch("int8.levels", values.size, torch.int8).numpy()
    round_blocks(values, inverses, dither(seed, values.size), levels, block)
    return scales.tobytes() + levels.tobytes()


@compiled
def round_blocks(
    values: Floats, inverses: Floats, noise: NDArray[np.uint16], levels: NDArray[np.int8], block: int
) -> None:
    """Rounds each value times its block's inverse scale up or down at random, without bias, to -127..127."""
    for b in range(inverses.size):
        row, target = values[b * block : (b + 1) * block], levels[b * block : (b + 1) * block]
        dithers = noise[b * block : (b + 1) * block]
        for i in range(row.size):
            uniform = (np.float32(dithers[i]) + np.float32(0.5)) * UNIT
            level = np.floor(row[i] * inverses[b] + uniform)
            target[i] = np.int8(min(max(level, -LEVEL_MAX), LEVEL_MAX))
