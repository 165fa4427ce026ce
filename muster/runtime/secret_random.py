"""Randomness that nobody else can derive: for noise and masks, never for what two machines have to agree on.

Every value comes from the operating system's generator at the moment it is asked for. No seed of the run is in it, so
it differs from attempt to attempt; what has to stay the same over a restart belongs in an algorithm's durable state.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_VALUES = 1 << 18  # drawn at once, so that memory is bounded whatever the shape


@dataclass(frozen=True)
class SecretRandom:
    """`source(n)` gives n unpredictable bytes; tests may hand in another one."""

    source: Callable[[int], bytes] = os.urandom

    def bytes(self, count: int) -> bytes:
        """`count` bytes, for keys and seeds."""
        return self.source(count)

    def uniform(self, *shape: int) -> Tensor:
        """float64, above 0 and at most 1, in steps of 2^-53."""
        import torch

        out = torch.empty(math.prod(shape), dtype=torch.float64)
        for part in torch.split(out, CHUNK_VALUES):
            part.copy_(self._integers(len(part)).bitwise_right_shift_(11).bitwise_and_((1 << 53) - 1))
            part.add_(1.0).mul_(2.0**-53)
        return out.view(shape)

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        """float64, independent normal values of mean 0 and standard deviation `std` (Box and Muller, 1958)."""
        import torch

        out = torch.empty(math.prod(shape), dtype=torch.float64)
        for part in torch.split(out, CHUNK_VALUES):
            radius, angle = self.uniform(2, len(part))
            torch.mul(radius.log_().mul_(-2.0).sqrt_(), angle.mul_(2.0 * math.pi).cos_(), out=part)
        return out.mul_(std).view(shape)

    def integers(self, *shape: int) -> Tensor:
        """int64, every value equally likely: masks that cancel are added modulo 2^64."""
        return self._integers(math.prod(shape)).view(shape)

    def _integers(self, count: int) -> Tensor:
        import numpy as np
        import torch

        return torch.from_numpy(np.frombuffer(bytearray(self.source(8 * count)), dtype=np.int64))
