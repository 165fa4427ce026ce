"""e3m0: a sign and three exponent bits, so zero and seven powers of two; 4.0625 bits a coordinate.

    levels 0 and +-2^-6, +-2^-5, ..., +-2^0 times the largest magnitude of a block of 256

The format of Streaming DiLoCo's outer gradients (Douillard et al. 2025), with a scale for each block. See
`_levels` for the body; the index of a level is its rank, from 1 on.
"""

from __future__ import annotations

from compressors.quantizers.levels import LevelCodec


class E3m0(LevelCodec):
    spelling = "e3m0"
    source = "Douillard et al. 2025 (Streaming DiLoCo)"
    block = 256
    levels = (*(-(2.0**-e) for e in range(7)), 0.0, *(2.0**-e for e in reversed(range(7))))
