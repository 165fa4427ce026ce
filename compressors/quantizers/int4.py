"""Block int4: the integers -7 to 7 times a scale shared by 64 coordinates; 4.25 bits a coordinate.

See `_levels` for the body; the index of a level is the integer and 8.
"""

from __future__ import annotations

from compressors.quantizers.levels import LevelCodec


class Int4(LevelCodec):
    spelling = "int4"
    block = 64
    levels = tuple(q / 7 for q in range(-7, 8))
