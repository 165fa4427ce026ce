"""float32 as it is: 4 bytes a coordinate, little-endian."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from compressors.codec import PlainCodec, check_length, chunk_array


class Identity(PlainCodec):
    unbiased = True
    contractive = True
    linear = True
    spelling = "identity"

    def delta(self, size: int) -> float:  # nothing is lost at any size
        return 1.0

    def omega(self, size: int) -> float:
        return 0.0

    def bytes_max(self, size: int) -> int:
        return 4 * size

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # deterministic
        return chunk_array(x).tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        values = chunk_array(out)
        check_length(body, values.nbytes)
        np.copyto(values, np.frombuffer(body, dtype="<f4"))
