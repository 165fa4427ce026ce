"""bfloat16: float32 without its lower 16 bits, rounded to nearest even; 2 bytes a coordinate.

Eight significant bits, so a coordinate's relative error is at most 2^-8. Above 3.389e38 it becomes infinite.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compressors.core.codec import PlainCodec, check_length, chunk_array
from compressors.core.scratch import scratch
from compressors.device.codec import DeviceCodec


class Bf16(PlainCodec, DeviceCodec):
    unbiased = False
    contractive = True
    linear = False
    spelling = "bf16"

    def delta(self, size: int) -> float:  # the bound holds coordinate by coordinate
        return 1.0 - 2.0**-16

    def bytes_max(self, size: int) -> int:
        return 2 * size

    def encode_host(self, x: Tensor, seed: int) -> bytes:  # deterministic
        size = chunk_array(x).size
        halves = scratch("bf16", size, torch.bfloat16)
        halves.copy_(x.detach())
        return halves.view(torch.int16).numpy().tobytes()

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        size = chunk_array(out).size
        self.check(body, size)
        halves = scratch("bf16", size, torch.bfloat16)
        np.copyto(halves.view(torch.int16).numpy(), np.frombuffer(body, dtype="<i2"))
        out.copy_(halves)

    def pack(self, x: Tensor, seed: int) -> Tensor:
        return x.to(torch.bfloat16).view(torch.uint8)

    def check(self, body: bytes | memoryview, size: int) -> None:
        check_length(body, 2 * size)

    def unpack(self, body: Tensor, out: Tensor) -> None:
        out.copy_(body.view(torch.bfloat16))
