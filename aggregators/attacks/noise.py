"""Random numbers for each coordinate that do not depend on how the columns are cut into chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Drawn in whole blocks, each from its own seed, so that any chunk can be made alone. At least 16 numbers, as
# torch draws normal numbers in another way below that.
_BLOCK = 1 << 16
_SEED_STEP = 0x9E3779B97F4A7C15  # odd, so that no two blocks of a seed and hardly any of two seeds meet


def fill(out: Tensor, seed: int, start: int, draw: Callable[[Tensor, torch.Generator], object]) -> None:
    """Writes to `out` [c] the numbers of the coordinates from `start` on; `draw` fills a block in place."""
    block = torch.empty(_BLOCK, dtype=out.dtype)
    generator = torch.Generator()
    for index in range(start // _BLOCK, -(-(start + len(out)) // _BLOCK)):
        generator.manual_seed((seed + index * _SEED_STEP) % 2**63)
        draw(block, generator)
        first, last = max(start, index * _BLOCK), min(start + len(out), (index + 1) * _BLOCK)
        out[first - start : last - start] = block[first - index * _BLOCK : last - index * _BLOCK]
