"""EF14: what the codec loses is kept and added to the next round's update.

    p = x + e;  send C(p);  e = p - C(p)

Sent so far and residual together are always all that was put in. With a contractive codec the residual stays
bounded and SGD converges, with a bias of order step size squared. Seide et al. 2014; Stich et al. 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressors._scratch import scratch
from compressors.codec import Codec
from compressors.feedback import Feedback

MAGNITUDE_MAX = 2.0**126  # nothing below this becomes infinite by a codec's rounding


class Ef14(Feedback):
    state_names = ("residual",)

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        residual = state["residual"]
        pending = scratch("ef14.pending", x.numel(), torch.float32)
        torch.add(x.detach(), residual, out=pending)
        body = codec.encode(pending, seed)
        if pending.numel() and _is_bounded(pending):
            decoded = scratch("ef14.decoded", x.numel(), torch.float32)
            codec.decode(body, decoded)
            torch.sub(pending, decoded, out=residual)
        return body


def _is_bounded(values: Tensor) -> bool:
    # Two reductions are quicker than isfinite; a NaN passes through both and fails the comparison.
    return max(-float(values.amin()), float(values.amax())) < MAGNITUDE_MAX
