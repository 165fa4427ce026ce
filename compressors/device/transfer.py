"""Between the host and a device, and a chunk's noise there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOISE_BITS = 16


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy there. CUDA stages what is not pinned before it returns, so that nobody has to wait or to keep it."""
    return torch.from_numpy(np.array(array)).to(device, non_blocking=device.type == "cuda")


def download(packed: Tensor) -> NDArray[Any]:
    """The only place where the host waits for a device to encode."""
    return packed.cpu().numpy()


def noise(seed: int, like: Tensor) -> Tensor:
    """[size] int32, uniform below 2^16, made where `like` [size] lies: the numbers that `_dither` makes on the CPU.

    They come from the device's own generator: to draw them on the host and to send two bytes a coordinate would cost
    more than everything else, the body's way back included. So they are others than on the CPU, or on another kind of
    device; since decoding takes none, nobody has to agree on them.
    """
    generator = torch.Generator(like.device).manual_seed(seed % (1 << 64))
    return torch.randint(
        0, 1 << NOISE_BITS, like.shape, dtype=torch.int32, device=like.device, generator=generator
    )


def uniform(numbers: Tensor) -> Tensor:
    """Noise as float32 in (0, 1)."""
    return (numbers.float() + 0.5) * 2.0**-NOISE_BITS
