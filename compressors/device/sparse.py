"""What a sparsifier needs of a chunk that lies on a device, and how it puts values there."""

from __future__ import annotations

import torch
from torch import Tensor

INFINITE = 0x7F800000


def largest(x: Tensor, k: int) -> Tensor:
    """[2, k] int32, 0 < k <= size: the indices of the k largest magnitudes, increasing, and the bits of the values.

    Ties go to the lower index, and what is not finite counts as largest, as in `compressors.sparsifiers.topk`; but
    always k, so zeros may be among them, which the host leaves out.
    """
    magnitudes = (x.view(torch.int32) & 0x7FFFFFFF).clamp_(max=INFINITE)
    weakest = magnitudes.topk(k, sorted=False).values.amin()
    above, ties = magnitudes > weakest, magnitudes == weakest
    keep = above | (ties & (ties.cumsum(0) <= k - above.sum()))
    # The number j of those kept is where their running count reaches j: k of them, whatever they are.
    ranks = torch.arange(1, k + 1, device=x.device)
    indices = torch.searchsorted(keep.cumsum(0), ranks, out_int32=True)
    return torch.stack((indices, x.index_select(0, indices).view(torch.int32)))


def gather(x: Tensor, indices: Tensor) -> Tensor:
    """[k + 1]: the values at indices [k] int32, then the largest less the smallest of all, finite if they all are."""
    least, most = x.aminmax()
    return torch.cat((x.index_select(0, indices), (most - least).unsqueeze(0)))


def scatter(indices: Tensor, values: Tensor, out: Tensor) -> None:
    """out [size] becomes zero, but values [k] at indices [k] int32, which were checked on the host."""
    out.zero_().index_copy_(0, indices.long(), values)
