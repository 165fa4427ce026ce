"""float32 as it is: 4 bytes a coordinate, little-endian."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compressors.core.codec import PlainCodec, check_length, chunk_array
from compressors.device.codec import DeviceCodec


class Identity(PlainCodec, DeviceCodec):
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
        self.check(body, values.size)
        np.copyto(values, np.frombuffer(body, dtype="<f4"))

    def pack(self, x: Tensor, seed: int) -> Tensor:
        return x.view(torch.uint8)

    def check(self, body: bytes | memoryview, size: int) -> None:
        check_length(body, 4 * size)

    def unpack(self, body: Tensor, out: Tensor) -> None:
        out.copy_(body.view(torch.float32))
